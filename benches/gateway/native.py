"""The two C programs: compile them on demand, start the mock upstream, run the load generator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / ".polyroute" / "bench-bin"


class ToolError(RuntimeError):
    """Something the bench needs is not on this machine, or did not start. The message says what to do."""


def build(name: str) -> Path:
    """The compiled program, made again when its source is newer."""
    source, target = HERE / f"{name}.c", BUILD / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    compilers = (os.environ.get("CC") or "cc", "gcc", "clang")
    compiler = next((path for word in compilers if (path := shutil.which(word))), None)
    if compiler is None:
        raise ToolError(
            f"cannot build {name}: expected a C compiler, found none of {', '.join(compilers)}. "
            "Install one, for instance `apt-get install gcc libc6-dev`."
        )
    BUILD.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([compiler, "-O2", "-o", draft, source], capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"cannot build {name}: {compiler} said\n{done.stderr.strip()}")
    draft.replace(target)
    return target


@dataclass
class Mock:
    """A running mock upstream."""

    process: subprocess.Popen[str]
    port: int

    def stats(self) -> dict[str, int]:
        """requests, streams, paced, cut, connections since its start."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


def start_mock(core: int, *, pace_ms: float = 5.0) -> Mock:
    """A mock upstream on one core, on a free port."""
    process = subprocess.Popen([build("mock_upstream"), "--pace-ms", str(pace_ms)], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {core})
    assert process.stdout is not None
    word, _, port = process.stdout.readline().partition(" ")
    if word != "listening":
        raise ToolError(f"the mock upstream did not start: it said {word!r}")
    return Mock(process, int(port))


def run_load(core: int, options: Sequence[str], at_edge: Callable[[], None] = lambda: None) -> dict[str, object]:
    """Run the load generator on one core. Calls back when its window opens and closes; returns what it measured."""
    last = ""
    with subprocess.Popen(
        [build("loadgen"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            last = line.strip()
            if last in ("start", "stop"):
                at_edge()
        complaint = process.stderr.read().strip()
    if process.returncode or not last.startswith("{"):
        raise ToolError(f"the load generator failed: {complaint or last or 'no output'}")
    measured: dict[str, object] = json.loads(last)
    return measured
