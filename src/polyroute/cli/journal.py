"""polyroute journal: what the gateway decided, what came of it, and the file that holds it."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyroute.cli.check import DEFAULT_PATH, aligned
from polyroute.errors import ConfigError, JournalError, MissingExtraError

SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
EXAMPLE = """examples:
  polyroute journal stats                        spend, shares, quality, and how big the file is
  polyroute journal tail -n 50 --follow          the last decisions, and new ones as they finish
  polyroute journal show dec_0123...             why that model, what the others were worth, what came of it
  polyroute journal export decisions.parquet     one row a decision
  polyroute journal prune --older-than 30d       remove old rows; totals stay; the gateway may run

The file is --journal, else [journal] path of ./polyroute.toml, else .polyroute/journal.sqlite."""


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "journal",
        help="look into the record of decisions and outcomes, export it, prune it",
        description="The gateway's record of every decision and outcome.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    stats = actions.add_parser("stats", help="totals, by model and policy", epilog="example: polyroute journal stats")
    tail = actions.add_parser("tail", help="the last decisions", epilog="example: polyroute journal tail -n 50 -f")
    tail.add_argument("-n", "--number", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with new outcomes until interrupted")
    show = actions.add_parser("show", help="everything about one decision",
                              epilog="example: polyroute journal show dec_0123456789abcdef01234567")  # fmt: skip
    show.add_argument("id", metavar="ID", help="decision id, from a header x-polyroute-decision-id or from tail")
    export = actions.add_parser("export", help="write a Parquet table",
                                epilog="example: polyroute journal export decisions.parquet")  # fmt: skip
    export.add_argument("out", type=Path, metavar="OUT.parquet")
    prune = actions.add_parser("prune", help="remove old decisions and what belongs to them",
                               epilog="example: polyroute journal prune --older-than 30d --dry-run")  # fmt: skip
    prune.add_argument("--older-than", required=True, metavar="AGE", help="for example 30d, 12h, 90m, 8w")
    prune.add_argument("--dry-run", action="store_true", help="only count")
    for action in (stats, tail, show, export, prune):
        action.add_argument("--journal", type=Path, metavar="FILE", help="the journal's file")
    for action in (stats, tail, show):
        action.add_argument("--json", action="store_true", help="JSON, for tail one document a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    path = journal_path(args.journal)
    try:
        return ACTIONS[args.action](args, path)
    except sqlite3.Error as error:
        raise JournalError(path, str(error), hint="Another program may hold it; try again.") from error
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "msgspec", "gateway") from None
    except KeyboardInterrupt:
        return 130


def journal_path(given: Path | None) -> Path:
    """The file that is meant: as given, as configured here, or the default."""
    if given is not None:
        return given
    from polyroute.gateway.config import load_config

    return load_config(DEFAULT_PATH if DEFAULT_PATH.exists() else None, read_environment=False).journal.path


def run_stats(args: argparse.Namespace, path: Path) -> int:
    from polyroute.gateway.journal_care import contents

    found = contents(path)
    totals = found.totals
    if args.json:
        print(json.dumps(found._asdict()))
        return 0
    print(f"{path}: {found.bytes / 1e6:.1f} MB, since {clock(found.created)}")
    print(f"rows       {found.decisions:,} decisions, {found.outcomes:,} outcomes, {found.feedback:,} reports")
    if found.first is not None and found.last is not None:
        print(f"           from {clock(found.first)} to {clock(found.last)}")
    share = totals["saved_usd"] / totals["dearest_usd"] if totals["dearest_usd"] else 0.0
    print(f"requests   {totals['requests']:,}  " + "  ".join(f"{k} {v:,}" for k, v in totals["states"].items()))
    print(f"spend      {totals['spend_usd']:.6f} USD; always the dearest {totals['dearest_usd']:.6f} USD: ", end="")
    print(f"{share:.1%} saved")
    if totals["quality"] is not None:
        print(f"quality    {totals['quality']:.3f} over {totals['quality_reports']:,} reports")
    print()
    rows = [
        [name, f"{m['requests']:,}", f"{m['requests'] / max(1, totals['requests']):.1%}", f"{m['spend_usd']:.6f}",
         f"{m['prompt_tokens']:,}", f"{m['completion_tokens']:,}", number(m["quality"], ".3f")]
        for name, m in totals["models"].items()
    ]  # fmt: skip
    head = ["model", "requests", "share", "USD", "prompt tokens", "completion tokens", "quality"]
    print(*aligned(head, rows), sep="\n")
    print()
    policies = [[name, f"{count:,}"] for name, count in totals["policies"].items()]
    print(*aligned(["policy", "decisions"], policies), sep="\n")
    return 0


def run_tail(args: argparse.Namespace, path: Path) -> int:
    from polyroute.gateway.journal_file import latest, open_to_read

    with contextlib.closing(open_to_read(path)) as file:
        (seen,) = file.execute("SELECT coalesce(max(rowid), 0) FROM outcomes").fetchone()
        for _, found in latest(file, max(0, args.number)):
            tell(found, args.json)
        while args.follow:
            rows = file.execute(
                "SELECT rowid, decision_id FROM outcomes WHERE rowid > ? ORDER BY rowid LIMIT 1000", (seen,)
            ).fetchall()
            for seen, decision_id in rows:  # noqa: B007  # where to go on from
                follow_up(file, decision_id, args.json)
            if not rows:
                time.sleep(0.3)
    return 0


def follow_up(file: sqlite3.Connection, decision_id: str, as_json: bool) -> None:
    """Tell of a decision whose outcome has just come in."""
    from polyroute.gateway.journal_file import find

    if (found := find(file, decision_id)) is not None:
        tell(found, as_json)


def tell(found: Any, as_json: bool) -> None:
    """One line about one decision."""
    decision = plain(found.decision)
    outcome = plain(found.outcome) if found.outcome else {}
    if as_json:
        reports = [plain(report) for report in found.feedback]
        print(json.dumps({"decision": decision, "outcome": outcome or None, "feedback": reports}), flush=True)
        return
    served = outcome.get("selected", decision["selected"])
    state = "dry run" if decision["dry_run"] else outcome.get("state", "open")
    cells = [
        clock(decision["time"]), decision["id"], f"{decision['requested']} -> {served}".ljust(36),
        f"{outcome.get('status', '')} {state}".ljust(13),
        f"{number(outcome.get('cost_usd'), '.6f'):>10} USD", f"{number(outcome.get('latency_s'), '.2f'):>7} s",
        f"p {decision['propensity']:.2f}", decision["because"],
    ]  # fmt: skip
    print(printable("  ".join(cells)), flush=True)


def run_show(args: argparse.Namespace, path: Path) -> int:
    from polyroute.gateway.journal_file import find, open_to_read

    with contextlib.closing(open_to_read(path)) as file:
        found = find(file, args.id)
    if found is None:
        print(
            f"polyroute journal show: no decision {args.id!r} in {path}; see `polyroute journal tail`.", file=sys.stderr
        )
        return 1
    if args.json:
        tell(found, True)
        return 0
    for line in shown(found):
        print(printable(line))
    return 0


def shown(found: Any) -> Iterator[str]:
    """Everything about one decision, for people."""
    decision = plain(found.decision)
    yield f"{decision['id']}  {clock(decision['time'])}  request {decision['request_id']}, {decision['endpoint']}"
    yield f"asked      {decision['requested']}, policy {decision['policy']}" + (", dry run" * decision["dry_run"])
    yield f"chosen     {decision['selected']}, propensity {decision['propensity']:g}: {decision['because']}"
    yield f"weights    {', '.join(f'{name} {weight:g}' for name, weight in decision['weights'].items()) or 'none'}"
    yield f"by         router {decision['router'] or 'none'}, artefact {decision['artefact'] or 'none'}"
    if decision.get("prompt") is not None:
        yield f"prompt     {decision['prompt']}"
    yield ""
    if decision["candidates"]:
        yield from candidate_lines(decision)
        yield ""
    outcome = plain(found.outcome) if found.outcome else {}
    known = {name: value for name, value in outcome.items() if value is not None}
    said = [f"{name} {value}" for name, value in known.items() if name not in ("decision_id", "time", "usage")]
    yield f"outcome    {', '.join(said) or 'not known'}"
    for report in map(plain, found.feedback):
        metrics = ", ".join(f"{name} {value:g}" for name, value in report["metrics"].items())
        yield f"feedback   {clock(report['time'])} {report['source']}: {metrics} {report.get('comment') or ''}".rstrip()


def candidate_lines(decision: Mapping[str, Any]) -> list[str]:
    """What each candidate was expected to yield."""
    metrics = sorted({name for one in decision["candidates"] for name in one.get("mean", {})})
    rows = [
        ["*" if one["id"] == decision["selected"] else "", one["id"],
         *(estimate(one, name) for name in metrics), number(one.get("utility"), ".4f"), one.get("refused") or ""]
        for one in decision["candidates"]
    ]  # fmt: skip
    return aligned(["", "candidate", *metrics, "utility", "ruled out by"], rows)


def estimate(one: Mapping[str, Any], metric: str) -> str:
    """A mean and what is known of its error."""
    mean, std = one.get("mean", {}).get(metric), one.get("std", {}).get(metric)
    return number(mean, ".4g") + (f" +- {std:.2g}" if std is not None else "")


def run_export(args: argparse.Namespace, path: Path) -> int:
    from polyroute.cli.tables import writable
    from polyroute.gateway.journal_care import export

    writable("OUT", args.out, ".parquet", read=[path])
    print(f"{args.out}: {export(path, args.out):,} decisions")
    return 0


def run_prune(args: argparse.Namespace, path: Path) -> int:
    from polyroute.gateway.journal_care import prune

    before = time.time() - age(args.older_than)
    gone = prune(path, before, dry_run=args.dry_run)
    word = "would remove" if args.dry_run else "removed"
    print(f"{word} {gone.decisions:,} decisions, {gone.outcomes:,} outcomes and {gone.feedback:,} reports", end=" ")
    print(f"from before {clock(before)}" + ("" if args.dry_run else f"; {gone.bytes / 1e6:.1f} MB given back"))
    return 0


def age(text: str) -> float:
    """30d -> seconds. Raises: ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise ConfigError("--older-than", got=text, expected="a number with m, h, d or w, as in 30d")
    return float(match[1]) * SECONDS[match[2]]


def plain(record: str) -> dict[str, Any]:
    """A record's JSON, without the place of the embedding."""
    content: dict[str, Any] = json.loads(record)
    content.pop("embedding", None)
    return content


def printable(text: str) -> str:
    """What clients sent, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def clock(moment: float) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


ACTIONS = {"stats": run_stats, "tail": run_tail, "show": run_show, "export": run_export, "prune": run_prune}
