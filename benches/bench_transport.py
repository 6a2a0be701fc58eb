"""Upstream clients side by side, on the wire rules and on speed: python -m benches.bench_transport [--quick]

Contenders, each in a fresh process pinned to one core, against an upstream in another process on the other core:
  floor      write fixed bytes, wait for a known number of bytes: what the event loop and the sockets cost by themselves
  client     polyroute.gateway.client
  pyreqwest  the Rust client, as close to the wire rules as its settings allow (pip install pyreqwest)
The upstream is nothing but a protocol that answers any request with fixed bytes. CPU counts all threads of the process;
with others on the machine, wall times tell little, and only one call at a time is timed by them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import uvloop

from benches.machine import machine, ticks
from benches.transports import ANSWER, BODY, EVENTS, SENT, TIMEOUTS, Floor, Rust, serve
from polyroute.gateway.client import Client
from polyroute.gateway.scripted import End, ScriptedUpstream, Seen, chunk, reply, stream

CONTENDERS = ("floor", "client", "pyreqwest")
ROUNDS = 5  # of every contender in turn; the medians are shown
TRIES = 20  # of each way to give up


async def speed(call: Callable[[], Awaitable[Any]], total: int, together: int) -> dict[str, float]:
    """CPU of this process, all threads, and wall time for each call, `together` of them under way at a time."""
    times: list[int] = []

    async def worker(share: int) -> None:
        for _ in range(share):
            start = time.perf_counter_ns()
            await call()
            times.append(time.perf_counter_ns() - start)

    await asyncio.gather(*(worker(20) for _ in range(together)))  # warm: connections open, code specialised
    times.clear()
    used = time.process_time_ns()
    await asyncio.gather(*(worker(total // together) for _ in range(together)))
    cpu_us = (time.process_time_ns() - used) / 1e3 / len(times)
    return {"cpu_us": cpu_us} | ({"p50_us": statistics.median(times) / 1e3} if together == 1 else {})


async def measure_speed(contender: str, url: str, quick: bool) -> dict[str, Any]:
    total = 800 if quick else 4000
    if contender == "floor":
        floor = Floor()
        return {f"json_c{n}": await speed(lambda: floor.call(url, BODY), total, n) for n in (1, 16)}
    transport: Any = Client() if contender == "client" else Rust()

    async def one() -> None:
        answer = await transport.send("POST", url + "/json", SENT, BODY, TIMEOUTS)
        assert await answer.read() == ANSWER

    late: list[int] = []

    async def streamed(path: str) -> None:
        answer = await transport.send("POST", url + path, SENT, BODY, TIMEOUTS)
        async for piece in answer.chunks():
            if piece.startswith(b"data: "):  # not so where a client cuts chunks up
                late.append(time.monotonic_ns() - int(piece[6:26]))

    rows: dict[str, Any] = {f"json_c{n}": await speed(one, total, n) for n in (1, 16)}
    burst = await speed(lambda: streamed("/burst"), 20 if quick else 100, 1)
    rows["burst_event"] = {"cpu_us": burst["cpu_us"] / EVENTS}
    late.clear()
    used = time.process_time_ns()
    await asyncio.gather(*(streamed("/events") for _ in range(16)))
    cpu_us = (time.process_time_ns() - used) / 1e3 / (16 * EVENTS)
    p50, p99 = (statistics.quantiles(late, n=100)[k] / 1e3 for k in (49, 98))
    rows["paced_event"] = {"cpu_us": cpu_us, "late_p50_us": p50, "late_p99_us": p99, "pieces": len(late)}
    await transport.close()
    return rows


async def measure_rules(contender: str) -> dict[str, Any]:
    """What each client does to the bytes, to a cancelled call and to a stream nobody reads."""
    transport: Any = Client() if contender == "client" else Rust()

    async def send(upstream: ScriptedUpstream) -> Any:
        return await transport.send("POST", upstream.url + "/v1", SENT, BODY, TIMEOUTS)

    found: dict[str, Any] = {}
    async with ScriptedUpstream(reply(ANSWER)) as upstream:
        await (await send(upstream)).read()
        names = [name for name, _ in upstream.seen[0].headers]
        wanted = [name for name, _ in SENT]
        found["headers_changed"] = [w.decode() for w in wanted if w not in names]
        found["headers_added"] = [n.decode() for n in names if n.lower() not in {w.lower() for w in wanted}]
        lower = [n.lower() for n in names if n.lower() in {w.lower() for w in wanted}]
        found["order_kept"] = lower == [w.lower() for w in wanted]
    together = stream([])[0] + chunk(b"one") + chunk(b"two") + chunk(b"three") + chunk(b"")  # type: ignore[operator]
    async with ScriptedUpstream([together]) as upstream:
        found["chunks_in_one_write"] = [p.decode() async for p in (await send(upstream)).chunks()]
    found["cancel_ms"] = {phase: await cancelled_ms(send, phase) for phase in ("head", "body", "close")}
    found["unread_stream"] = await unread(send)
    await transport.close()
    return found


async def cancelled_ms(send: Any, phase: str) -> dict[str, Any]:
    """From giving up to the upstream's seeing it, 20 times: in `send`, in a read, or by `close`."""
    times, unseen = [], 0
    script = [End.STALL] if phase == "head" else [stream([])[0], chunk(b"x"), End.STALL]
    async with ScriptedUpstream(script) as upstream:
        for count in range(1, TRIES + 1):
            if phase == "close":
                answer = await send(upstream)
                given_up = time.monotonic()
                await answer.close()
            else:
                task = asyncio.create_task(read_all(send, upstream))
                await upstream.until(lambda count=count: len(upstream.seen) == count)
                await asyncio.sleep(0.02)
                given_up = time.monotonic()
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            seen = upstream.seen[-1]
            with suppress(TimeoutError):
                await asyncio.wait_for(seen.over.wait(), 1.0)
            if seen.left_at is None:
                unseen += 1
            else:
                times.append((seen.left_at - given_up) * 1e3)
    shown = {"p50": round(statistics.median(times), 2), "worst": round(max(times), 2)} if times else {}
    return shown | {"not_within_1_s": unseen, "of": TRIES}


async def read_all(send: Any, upstream: ScriptedUpstream) -> None:
    """Read like a gateway does: whatever happens, the reply is closed."""
    answer = await send(upstream)
    try:
        async for _ in answer.chunks():
            pass
    finally:
        await answer.close()


async def unread(send: Any) -> dict[str, float]:
    """A 50 MB stream of which nothing is read for a second: megabytes the upstream got rid of, growth of our memory."""
    block = chunk(b"b" * 65_536)

    def fifty(seen: Seen) -> Any:
        yield stream([])[0]
        for _ in range(800):
            yield block
        yield chunk(b"")

    async with ScriptedUpstream(fifty) as upstream:
        before = rss_mb()
        answer = await send(upstream)
        await asyncio.sleep(1.0)
        taken, grown = upstream.seen[0].sent / 1e6, rss_mb() - before
        num_bytes = 0
        async for piece in answer.chunks():
            num_bytes += len(piece)
        assert num_bytes == 800 * 65_536
    return {"sent_mb": round(taken, 1), "rss_mb": round(grown, 1), "rss_after_mb": round(rss_mb() - before, 1)}


def rss_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def child(arguments: list[str], core: int, **extra: Any) -> subprocess.Popen[str]:
    def pin() -> None:
        with suppress(OSError, AttributeError):
            os.sched_setaffinity(0, {core})

    command = [sys.executable, "-m", "benches.bench_transport", *arguments]
    return subprocess.Popen(command, text=True, stdout=-1, preexec_fn=pin, **extra)


def run_contender(contender: str, url: str, *flags: str) -> dict[str, Any]:
    process = child(["--contender", contender, "--url", url, *flags], 0)
    out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"{contender} failed")
    found: dict[str, Any] = json.loads(out)
    return found


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rows = runs[0]["speed"]
    return {row: {k: round(statistics.median(r["speed"][row][k] for r in runs), 1) for k in rows[row]} for row in rows}


def show(found: dict[str, Any]) -> None:
    speeds = {name: row["speed"] for name, row in found.items()}
    print(f"{'':>28} " + " ".join(f"{name:>10}" for name in speeds) + "   pyreqwest / client")
    for row in ("json_c1", "json_c16", "burst_event", "paced_event"):
        for key in ("cpu_us", "p50_us", "late_p50_us", "late_p99_us"):
            values = {name: s[row][key] for name, s in speeds.items() if key in s.get(row, {})}
            if values:
                cells = " ".join(f"{values[n]:>10.1f}" if n in values else f"{'-':>10}" for n in speeds)
                both = "pyreqwest" in values and "client" in values
                ratio = f"{values['pyreqwest'] / values['client']:.2f}" if both else ""
                print(f"{row + ' ' + key:>28} {cells}   {ratio}")
    for name, row in found.items():
        for rule, value in row.get("rules", {}).items():
            print(f"{name:>12} {rule:<20} {json.dumps(value)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run of each instead of five")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rules", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve())
        return 0
    if given.contender:
        found: dict[str, Any] = {"speed": uvloop.run(measure_speed(given.contender, given.url, given.quick))}
        if given.rules and given.contender != "floor":
            found["rules"] = uvloop.run(measure_rules(given.contender))
        print(json.dumps(found))
        return 0
    names = [n for n in CONTENDERS if n != "pyreqwest" or installed("pyreqwest")]
    server = child(["--serve"], (os.cpu_count() or 2) - 1, stdin=-1)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    before = ticks()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    flags = ["--quick"] if given.quick else []
    for left in range(0 if given.quick else ROUNDS - 1, -1, -1):
        for name in names:
            runs[name].append(run_contender(name, url, *flags, *([] if left else ["--rules"])))
    server.communicate("")
    rows = {name: runs[name][-1] | {"speed": median_of(runs[name])} for name in names}
    show(rows)
    versions = {n: importlib.metadata.version(n) for n in ("httptools", "uvloop", "pyreqwest") if installed(n)}
    print(json.dumps({"bench": "transport", "machine": machine(before), "versions": versions, "rows": rows}))
    return 0


def installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(f"{name} is not installed, its rows are left out: pip install {name}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
