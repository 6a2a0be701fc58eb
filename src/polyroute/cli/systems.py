"""polyroute systems: the table of published systems."""

from __future__ import annotations

import argparse
import json

from polyroute.proofs.systems import SCALES, STATUSES, load_systems


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    p = commands.add_parser(
        "systems",
        help="list the published systems, their parts and their state",
        epilog="example: polyroute systems --scale request --status proven",
    )
    p.add_argument("--scale", choices=SCALES, help="only this scale")
    p.add_argument("--status", choices=STATUSES, help="only this status")
    p.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rows = [row for row in load_systems() if args.scale in (None, row.scale) and args.status in (None, row.status)]
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    if args.json:
        print(json.dumps({"counts": counts, "systems": [{s: getattr(r, s) for s in r.__slots__} for r in rows]}))
        return 0
    print(f"{'id':>4}  {'name':<34} {'scale':<25} {'status':<11} parts")
    for row in rows:
        print(f"{row.id:>4}  {row.name:<34} {row.scale:<25} {row.status:<11} {' '.join(row.parts)}")
    print(f"{len(rows)} systems: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return 0
