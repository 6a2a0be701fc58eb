"""One row: a load through one proxy, with the CPU time, memory and stolen time of exactly that window."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.gateway import configs, machine
from benches.gateway.native import Mock, run_load
from benches.gateway.peers import Peer

MARK = "########"  # the load generator writes the running number here: no prompt comes twice
MODES = ("json", "paced", "burst")

TEMPLATES = """\
What is the capital of {}? (#{})
Explain {} in one sentence. Ticket {}
Is {} a good topic for lesson {}?
Write a Python function about {}, version {}
Translate '{}' into French, item {}
Solve for x: {} times x = {}
Prove a small fact about {}, exercise {}
Who wrote about {} in volume {}?
Give a synonym of {}, entry {}
Why does {} fail in build {}?
Sort these by size: {}, moon, {}
Make a haiku on {} number {}""".splitlines()
TOPICS = """\
Peru
recursion
photosynthesis
seven
graph search
inflation
a binary heap
integrals
violin strings
sleep
TCP
an ant colony
jazz
glaciers
regular expressions
copper""".splitlines()


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of the table: a proxy and the model names its clients ask for."""

    name: str
    peer: Peer | None  # None: the mock upstream itself
    model: str = configs.EXPLICIT
    paced_model: str = configs.PACED
    seconds_factor: float = 1.0  # slow peers need a longer window for the same number of answers
    max_runs: int = 99


def write_bodies(folder: Path, lane: Lane, mode: str) -> Path:
    """192 short chat requests of about 150 bytes, one a line. The same prompts for every lane."""
    model = lane.paced_model if mode == "paced" else lane.model
    lines = []
    for template in TEMPLATES:
        for topic in TOPICS:
            messages = [{"role": "user", "content": template.format(topic, MARK)}]
            body: dict[str, object] = {"model": model, "messages": messages}
            if mode != "json":
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            lines.append(json.dumps(body))
    path = folder / f"bodies-{lane.name.replace(' ', '-')}-{mode}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where rows are measured: two mock upstreams, two cores, a folder for files."""

    behind: Mock  # upstream of the proxies, on the load's core
    direct: Mock  # on the proxy's core, with nothing in front
    proxy_core: int
    load_core: int
    folder: Path

    def row(self, lane: Lane, mode: str, concurrency: int, seconds: float, run: int) -> dict[str, object]:
        """Measure one row; times in microseconds, memory in MB, shares 0..1."""
        mock = self.direct if lane.peer is None else self.behind
        port = mock.port if lane.peer is None else lane.peer.port
        pids = [mock.process.pid] if lane.peer is None else lane.peer.pids()
        machine.wait_until_quiet(pids)
        taken: list[tuple[float, dict[int, machine.CoreTimes], float]] = []

        def take() -> None:
            taken.append((machine.cpu_seconds(pids), machine.core_times(), machine.rss_mb(pids)))

        warm = ["--stagger-ms", "500", "--warmup", "0.6"] if mode == "paced" else ["--warmup", "0.3"]
        window = max(seconds, 1.5) if mode == "paced" else seconds  # a paced stream alone takes half a second
        asked = mock.stats()["requests"]
        measured = run_load(self.load_core, [
            "--url", f"http://127.0.0.1:{port}/v1/chat/completions", "--concurrency", str(concurrency),
            "--seconds", str(window * lane.seconds_factor), *warm, "--mark", MARK,
            "--bodies", str(write_bodies(self.folder, lane, mode)),
        ], take)  # fmt: skip
        (cpu, cores, _), (cpu_end, cores_end, rss) = taken
        asked = mock.stats()["requests"] - asked
        place = {"lane": lane.name, "mode": mode, "concurrency": concurrency, "run": run}
        pinned = (self.proxy_core, self.load_core)
        steal = machine.steal_share(cores, cores_end, pinned)
        busy = cores_end[self.proxy_core].busy - cores[self.proxy_core].busy
        more = {"rss_mb": round(rss, 1), "steal": round(steal, 3), "upstream_requests": asked}
        return place | shape(measured, cpu_end - cpu, busy) | more


def shape(measured: Mapping[str, object], cpu_s: float, core_busy_s: float) -> dict[str, object]:
    """A flat row from the load generator's line, the proxy's CPU seconds and its core's busy seconds in the window."""

    def rank(name: str, which: str) -> float | None:
        found = measured.get(f"{name}_us")
        return found[which] if isinstance(found, dict) else None

    def per(amount: object) -> float | None:
        return round(cpu_s * 1e6 / amount, 2) if isinstance(amount, int) and amount else None

    seconds = measured["seconds"]
    assert isinstance(seconds, float)
    same = ("seconds", "requests", "issued", "requests_per_s", "events_per_s", "errors", "first_error")
    ranks = {f"{name}_{which}_us": rank(name, which) for name in ("first", "gap") for which in ("p50", "p99")}
    return {
        **{name: measured[name] for name in same},
        "p50_us": rank("latency", "p50"),
        "p99_us": rank("latency", "p99"),
        **ranks,
        "cpu_us_per_request": per(measured["requests"]),
        "cpu_us_per_event": per(measured["events"]),
        "core_used": round(cpu_s / seconds, 3),
        "core_others": round(max(core_busy_s - cpu_s, 0.0) / seconds, 3),
    }


def plan(concurrencies: Sequence[int], modes: Sequence[str]) -> list[tuple[str, int]]:
    """The rows of one lane. Back-to-back streams say something about throughput only: one concurrency is enough."""
    middle = concurrencies[len(concurrencies) // 2]
    return [(mode, c) for mode in modes for c in ([middle] if mode == "burst" else concurrencies)]
