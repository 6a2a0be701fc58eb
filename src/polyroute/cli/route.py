"""polyroute route: what would be chosen for a text, and why. No model is called and nothing is written down."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyroute.cli.check import DEFAULT_PATH, aligned
from polyroute.errors import ConfigError, MissingExtraError, UnknownNameError

if TYPE_CHECKING:
    from polyroute.gateway.brain import Brain
    from polyroute.gateway.records import DecisionRecord, Weighed

EXAMPLE = """examples:
  polyroute route "What is 2+2?"
  polyroute route "Prove that there are infinitely many primes." --policy auto:best
  polyroute route --trade-off 1.5 --json - < question.txt
  polyroute route "Hello" --config polyroute.toml

The same decision as POST /polyroute/v1/route of a gateway that has just started: nothing learned from traffic yet."""


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "route",
        help="show the decision for a text, without calling a model",
        description="Show which model a text would go to, what was expected of each, and why.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", help="what a user would write; - reads it from stdin")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ./polyroute.toml if there is one")
    parser.add_argument("--policy", default="auto", metavar="NAME", help="a virtual model (default: %(default)s)")
    parser.add_argument("--trade-off", type=float, metavar="X", help="the policy's is set aside; 0: best at any cost")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from polyroute.gateway.build import build_brain
        from polyroute.gateway.config import load_config
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "msgspec", "gateway") from None
    trade_off = args.trade_off
    if trade_off is not None and not 0 <= trade_off < float("inf"):
        raise ConfigError("--trade-off", got=trade_off, expected="a number of 0 or more")
    text = legible(args.text)
    path = args.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    brain = build_brain(load_config(path, read_environment=False))
    record, seen = asyncio.run(decided(brain, text, args.policy, trade_off))
    if args.json:
        print(json.dumps(document(record, seen), ensure_ascii=False))
    else:
        show(brain, record, seen)
    return 0


def legible(given: str) -> str:
    """The text, or that of stdin for `-`. Raises: ConfigError where it is not UTF-8."""
    try:
        raw = sys.stdin.buffer.read() if given == "-" else given.encode("utf-8", "surrogateescape")
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        byte = f"byte 0x{problem.object[problem.start]:02x} at position {problem.start}"
        where = "stdin" if given == "-" else "text"
        raise ConfigError(where, got=byte, expected="UTF-8 text", hint="Convert it, for example with iconv.") from None


async def decided(
    brain: Brain, text: str, policy: str, trade_off: float | None
) -> tuple[DecisionRecord, dict[str, Any]]:
    """The decision of one chat request with one user turn, and what the router sees in it where it can tell."""
    from polyroute.gateway.asked import Asked
    from polyroute.gateway.profiles import part_with
    from polyroute.gateway.wire import read_view

    if policy not in brain.policies:
        raise UnknownNameError("policy", policy, brain.policies)
    request = {"model": policy, "messages": [{"role": "user", "content": text}]}
    view = read_view(json.dumps(request).encode())
    served = brain.policies[policy]
    asked = Asked(view, served, policy, "chat.completions", trade_off=trade_off, dry_run=True, readable=True)
    choice = await brain.decide(asked)
    reader = part_with(brain.router, "explain")
    seen = {} if reader is None else dict(reader.explain(choice.query))
    return choice.record, seen


def document(record: DecisionRecord, seen: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON-able data, without the vector."""
    from polyroute.gateway.records import plain

    kept = plain(record)
    for name in ("embedding", "id", "request_id", "session", "tenant"):
        kept.pop(name)
    return {**kept, "explained": seen}


def show(brain: Brain, record: DecisionRecord, seen: dict[str, Any]) -> None:
    """A table of candidates, then the reasons."""
    weights = " ".join(f"{weight:+g} {metric}" for metric, weight in record.weights.items())
    print(f"policy     {record.policy}: utility = {weights}")
    print(f"prompt     {record.prompt_tokens} tokens" + (f", needs {' '.join(record.needs)}" if record.needs else ""))
    if "tasks" in seen:
        print("like       " + largest(seen["tasks"]))
    if "difficulty" in seen and any(candidate.profile.ability for candidate in brain.pool):
        print(f"difficulty {seen['difficulty']:+.2f} logits, {largest(seen['skills'])}")
    print()
    head = ["", "candidate", "quality", "cost USD", "latency s", "utility", "ruled out by"]
    rows = [row_of(one, one.id == record.selected) for one in record.candidates]
    print(*aligned(head, rows), sep="\n")
    print()
    for one in record.candidates:
        if one.id in brain.measured:
            print(f"{one.id}: {brain.measured[one.id]}")
    print(f"{record.selected}: {record.because}")


def largest(shares: dict[str, float], number: int = 4) -> str:
    """The largest shares, in words."""
    order = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in order[:number])


def row_of(one: Weighed, chosen: bool) -> list[str]:
    """One candidate: what is expected of it, with the doubt where it is known."""
    return [
        "*" if chosen else "",
        one.id,
        expected(one, "quality", ".3f"),
        expected(one, "cost", ".3g"),
        expected(one, "latency", ".2f"),
        "" if one.utility is None else f"{one.utility:+.3f}",
        one.refused or "",
    ]


def expected(one: Weighed, metric: str, style: str) -> str:
    if metric not in one.mean:
        return "?"
    return f"{one.mean[metric]:{style}}" + (f" +- {one.std[metric]:{style}}" if metric in one.std else "")
