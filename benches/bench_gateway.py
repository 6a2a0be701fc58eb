"""The gateway beside nginx, Envoy and LiteLLM, wire to wire in one run: python -m benches.bench_gateway [--quick]

A fast mock upstream (C) answers behind each proxy; a closed-loop load generator (C) asks in front. The proxy has a
core of its own. Every promise is printed beside what this run measured; nothing here is a pass-or-fail test.
Read ratios within one run; absolute times move with the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benches.gateway import configs, machine, table
from benches.gateway.decide_time import measure_decide
from benches.gateway.measure import Bench, Lane, plan
from benches.gateway.native import Mock, ToolError, start_mock
from benches.gateway.peers import NotAvailable, Peer, start_peer
from benches.gateway.soak import soak

Row = dict[str, object]
PEERS = ("nginx", "envoy", "litellm", "polyroute")
PACKAGES = ("polyroute", "numpy", "uvloop", "httptools", "msgspec", "uvicorn", "prometheus-client", "wordllama")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.bench_gateway", description=__doc__.partition("\n")[0], allow_abbrev=False,
        epilog="example: python -m benches.bench_gateway --quick --peers nginx,polyroute",
    )  # fmt: skip
    add = parser.add_argument
    add("--peers", default=",".join(PEERS), help="proxies to measure, comma-separated (default: %(default)s)")
    add("--seconds", type=float, default=None, help="window of a row (default: 2; with --quick 0.5)")
    add("--runs", type=int, default=None, help="runs of every row; medians are shown (default: 3; with --quick 1)")
    add("--concurrency", default=None, help="comma-separated (default: 1,16,64; with --quick 1,16)")
    add("--modes", default="json,paced,burst", help="json, paced and burst streams (default: %(default)s)")
    add("--soak", type=int, default=0, metavar="N", help="then send N requests and watch memory, e.g. 200000")
    add("--quick", action="store_true", help="a look in a minute or two; not for publication")
    add("--no-install", action="store_true", help="do not install missing peers")
    add("--no-awake", action="store_true", help="no lowest-priority loops that keep virtual cores awake")
    add("--save", type=Path, default=None, metavar="FILE", help="also write the last line's JSON here")
    args = parser.parse_args(argv)
    args.seconds = args.seconds or (0.5 if args.quick else 2.0)
    args.runs = args.runs or (1 if args.quick else 3)
    args.concurrency = [int(c) for c in (args.concurrency or ("1,16" if args.quick else "1,16,64")).split(",")]
    args.modes, args.peers = args.modes.split(","), args.peers.split(",")
    for given, known in ((args.modes, ("json", "paced", "burst")), (args.peers, PEERS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    return args


@contextlib.contextmanager
def mocks(proxy_core: int, load_core: int) -> Iterator[tuple[Mock, Mock]]:
    """The upstream behind the proxies, on the load's core, and the one measured directly, on the proxy's core."""
    with contextlib.ExitStack() as stack:
        started = []
        for core in (load_core, proxy_core):
            started.append(start_mock(core))
            stack.callback(started[-1].stop)
        yield started[0], started[1]


def start_all(
    names: Sequence[str], bench: Bench, *, install: bool, stack: contextlib.ExitStack
) -> tuple[list[Peer], dict[str, str]]:
    """Start every peer and pause it. Returns those that run, and for the others why not."""
    peers, missing = [], {}
    for name in names:
        try:
            peer = start_peer(name, bench.behind.port, bench.proxy_core, bench.folder, install=install, say=say)
        except NotAvailable as reason:
            missing[name] = str(reason)
            say(f"{name}: not available: {reason}")
            continue
        stack.callback(peer.stop)
        peer.pause()
        peers.append(peer)
        say(f"{name} {peer.version}: answers after {peer.started_s} s, {peer.rss_idle_mb:.0f} MB")
    return peers, missing


def lanes_of(peers: Sequence[Peer], *, quick: bool) -> list[Lane]:
    lanes = [Lane(name="direct", peer=None)]
    for peer in peers:
        slow = {"seconds_factor": 4.0, "max_runs": 2} if peer.name == "litellm" and not quick else {}
        lanes.append(Lane(name=peer.name, peer=peer, **slow))  # type: ignore[arg-type]
        if peer.name == "polyroute":
            lanes.append(Lane(name="polyroute auto", peer=peer, model=configs.AUTO, paced_model=configs.AUTO_PACED))
    return lanes


def measure_all(bench: Bench, lanes: Sequence[Lane], args: argparse.Namespace, missing: dict[str, str]) -> list[Row]:
    """All rows. Lanes take turns within every run, so that a slow minute of the machine meets all of them.

    A lane that breaks is left out from there on, its reason noted in `missing`.
    """
    rows: list[Row] = []
    begun = time.monotonic()
    for run in range(args.runs):
        for lane in (lane for lane in lanes if run < lane.max_runs and lane.name not in missing):
            if lane.peer is not None:
                lane.peer.resume()
            try:
                for mode, concurrency in plan(args.concurrency, args.modes):
                    rows.append(bench.row(lane, mode, concurrency, args.seconds, run))
                    say(f"{time.monotonic() - begun:5.0f} s  run {run + 1}/{args.runs}  {table.brief(rows[-1])}")
            except ToolError as error:
                if lane.peer is None:
                    raise
                missing[lane.name] = f"broke in run {run + 1}: {error}"
                say(f"{lane.name}: {missing[lane.name]}")
            if lane.peer is not None:
                lane.peer.pause()
    return rows


def witness(peer: Peer) -> dict[str, object]:
    """What the gateway itself counted: proof that journal and metrics were on while it was measured."""
    found: dict[str, object] = {}
    for name, path in (("summary", "/polyroute/v1/summary"), ("metrics", "/metrics")):
        try:
            body = peer.get(path)
            if name == "metrics":
                found["metrics_bytes"] = len(body)
            else:
                told = json.loads(body)
                found |= {"requests": told.get("requests"), "journal": told.get("journal")}
        except (OSError, ValueError) as error:
            found[name] = f"not available: {error}"
    return found


def header(args: argparse.Namespace, bench: Bench, peers: Sequence[Peer]) -> str:
    """What was measured on what, in a few lines."""
    one = " ONE CORE ONLY: proxy and load share it." if bench.proxy_core == bench.load_core else ""
    known = machine.describe()
    return "\n".join([
        f"{known['processor']}, {known['cores']} cores, Python {known['python']}",
        f"{args.runs} run(s) of {args.seconds:g} s, medians",
        f"the proxy on core {bench.proxy_core}, mock upstream and load on core {bench.load_core}.{one}",
        ", ".join(f"{peer.name} {peer.version}" for peer in peers),
        "flags, where every run had them: s over 10 % of a core stolen, o other programs on the proxy's "
        "core, e errors, c answers the upstream never saw\n",
    ])  # fmt: skip


@dataclass
class Found:
    """Everything one run of the bench measured."""

    rows: list[Row]
    missing: dict[str, str]  # peer -> why it was not measured
    peers: list[Peer]
    soaked: dict[str, object] | None = None
    told: dict[str, object] | None = None  # the gateway's own counts
    decided: dict[str, object] | None = None

    def targets(self) -> list[table.Target]:
        p50 = (self.decided or {}).get("p50_us")
        return table.targets(table.summarise(self.rows), self.soaked, p50 if isinstance(p50, float) else None)


def measure(args: argparse.Namespace, proxy_core: int, load_core: int) -> Found:
    """Start everything, measure everything, stop everything. Prints the header when the peers are known."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polyroute-bench-")))
        behind, direct = stack.enter_context(mocks(proxy_core, load_core))
        stack.enter_context(machine.kept_awake(on=not args.no_awake))
        bench = Bench(behind=behind, direct=direct, proxy_core=proxy_core, load_core=load_core, folder=folder)
        peers, missing = start_all(args.peers, bench, install=not args.no_install, stack=stack)
        found = Found(measure_all(bench, lanes_of(peers, quick=args.quick), args, missing), missing, peers)
        ours = next((peer for peer in peers if peer.name == "polyroute"), None)
        if ours is not None:
            ours.resume()
            found.soaked = soak(bench, ours, args.soak, say) if args.soak else None
            found.told = witness(ours)
            ours.pause()
        if "polyroute" in args.peers:
            os.sched_setaffinity(0, {proxy_core})
            found.decided = measure_decide()
            os.sched_setaffinity(0, {proxy_core, load_core})
        print(header(args, bench, peers))
    return found


def report(found: Found) -> None:
    """The tables for people."""
    summary = table.summarise(found.rows)
    print(table.trust(found.rows) + "\n")
    print(table.json_table(summary, found.missing) + "\n")
    if table.levels(summary, "paced"):
        print(table.stream_table(summary) + "\n")
    if any(peer.name == "polyroute" for peer in found.peers):
        print(table.ratio_table(summary) + "\n")
    if found.soaked:
        line = (
            "soak: {base_mb} MB after {warm_requests:,} requests to warm up; {least_mb} to {most_mb} MB over the next "
        )
        line += "{requests:,}; {errors} errors"
        print(line.format(**found.soaked) + "\n")
    if found.told is not None:
        print(f"the gateway's own count: {json.dumps(found.told)}")
    if found.decided and "not_available" in found.decided:
        print(f"decide(): not available: {found.decided['not_available']}")
    print(table.target_table(found.targets()) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    proxy_core, load_core = machine.cores()
    before = machine.core_times()
    try:
        found = measure(args, proxy_core, load_core)
    except ToolError as error:
        say(f"bench_gateway: {error}")
        return 2
    report(found)
    peers = [{"name": p.name, "started_s": p.started_s, "rss_idle_mb": round(p.rss_idle_mb, 1)} for p in found.peers]
    last = {
        "bench": "gateway",
        "machine": machine.describe(),
        "versions": machine.versions(PACKAGES) | {peer.name: peer.version for peer in found.peers},
        "cores": {"proxy": proxy_core, "load": load_core},
        "keep_awake": not args.no_awake,
        "runs": args.runs,
        "seconds": args.seconds,
        "steal": round(machine.steal_share(before, machine.core_times(), (proxy_core, load_core)), 4),
        "not_available": found.missing,
        "targets": [target._asdict() for target in found.targets()],
        "decide": found.decided,
        "soak": found.soaked,
        "gateway_says": found.told,
        "peers": peers,
        "rows": found.rows,
    }
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.write_text(json.dumps(last, indent=1) + "\n")
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
