"""polyroute bench: every router on every table by one protocol, and the page that says what came of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from polyroute.artefact import ROUTERS, load, resolve_router, save
from polyroute.cli import newcomer
from polyroute.cli.arguments import seed_of
from polyroute.cli.fit import made_with
from polyroute.cli.kept import code_of, read, write
from polyroute.cli.progress import Steps, say
from polyroute.cli.tables import FEATURES, answered, counted, embedded, writable
from polyroute.cli.wanted import tables_wanted, what_is_wanted
from polyroute.data.outcomes import load_outcomes
from polyroute.data.recorded import recorded_answers
from polyroute.errors import PolyrouteError, UnknownNameError
from polyroute.offline.benchmark import (
    PLAIN_KNN,
    PROTOCOL,
    TARGETS,
    Ground,
    Record,
    about,
    bench_baselines,
    bench_router,
    ground,
    plain_knn,
    record_of,
    speed_of_pools,
)
from polyroute.offline.choose import FAMILIES, QUALITY_ROUTERS, Chosen, best, families_of, quality_router, try_settings
from polyroute.offline.evaluate import SHRUNK_KNN
from polyroute.offline.results import CASCADE, DEFAULT, Section, page
from polyroute.proofs.systems import load_systems
from polyroute.protocols import Router
from polyroute.recipes.verified import verified_cascade_curve, with_answers
from polyroute.types import Outcomes

EXAMPLE = """examples:
  polyroute bench request --resume
  polyroute bench request --tables routerbench --routers knn linear default -o /tmp/request.md
  polyroute bench newcomer --tables routerbench llmrouter9 -o /tmp/newcomers.md

The tables are those of outcomes/ in the folder that POLYROUTE_DATA names. Every table and router leaves a record in
the cache folder; with --resume, records made by the same code from the same table are used again.
newcomer: each model is left out and joins the default router again with a few labelled answers; see --judge."""
BASELINES = "baselines"
FEWEST = 50  # test queries with recorded answers below which a cascade is not judged


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="every router on every table, and the page of results",
        description="Measure every router on every public table by one protocol and write the page of results.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale", choices=("request", "newcomer"), help="what is measured")
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="default: all of outcomes/")
    parser.add_argument("--routers", nargs="+", metavar="NAME", help="default: all that predict quality")
    parser.add_argument("--features", nargs="+", default=["static-1"], choices=FEATURES, help="default: static-1")
    parser.add_argument("--resume", action="store_true", help="use the records of earlier runs where they still hold")
    parser.add_argument("--cache", type=Path, default=Path(".polyroute/bench"), metavar="FOLDER",
                        help="where records go (default: %(default)s)")  # fmt: skip
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--seed", type=seed_of, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.md",
                        help="page to write (default: request.md or newcomers.md in docs/results)")  # fmt: skip
    newcomer.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.output is None:
        args.output = Path("docs/results") / ("request.md" if args.scale == "request" else "newcomers.md")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    writable("--output", args.output, ".md")
    if args.scale == "newcomer":
        tables = [path for name, path in tables_wanted(args).items() if args.tables or name in TARGETS]
        return newcomer.run(args, tables)
    wanted = what_is_wanted(args)
    args.cache.mkdir(parents=True, exist_ok=True)
    sections = []
    for table in wanted.tables:
        for features in wanted.features:
            records = bench_table(table, features, wanted.routers, args)
            sections.append(section(table.stem, features, records, args.output))
            if answers_of(table):
                names = [name for name in (DEFAULT, CASCADE) if name in (*wanted.routers, CASCADE)]
                if records := bench_table(table, features, names, args, answers=True):
                    sections.append(section(f"{table.stem}-answers", features, records, args.output))
    command = " ".join(["polyroute bench request", *options(args)])
    elsewhere = targets_elsewhere()
    text = page(sections, command=command, skipped=wanted.skipped, made_with=made_with(), elsewhere=elsewhere)
    args.output.write_text(text, encoding="utf-8")
    print(f"wrote {args.output}")
    print(json.dumps({
        "command": "bench", "output": str(args.output), "skipped": wanted.skipped, "made_with": made_with(),
        "tables": [{"table": one.table, "features": one.features,
                    "aiq": {row["name"]: round(row["aiq"], 4) for row in one.rows}} for one in sections],
    }))  # fmt: skip
    return 0


def targets_elsewhere() -> str:
    """The targets of this scale that other commands measure, with what the last proofs said."""
    rows = {row.id: row for row in load_systems()}
    return "\n".join([
        "## Targets that other commands measure\n",
        "| target | reached |", "|---|---|",
        "| a model added with 30 labelled answers reaches 90 % of the gain of all | [Newcomers](newcomers.md) |",
        f"| a guard's weighted score above 0.863 | {rows[81].figures} |",
        f"| spend within 1 % of a budget over any 1,000 requests | {rows[100].figures} |",
    ]) + "\n"  # fmt: skip


def options(args: argparse.Namespace) -> list[str]:
    """The options that change what is measured, as given."""
    given = []
    for name, default in (("tables", None), ("routers", None), ("features", ["static-1"])):
        if getattr(args, name) != default:
            given += [f"--{name}", *getattr(args, name)]
    return given


def bench_table(
    table: Path, features: str, routers: Sequence[str], args: argparse.Namespace, *, answers: bool = False
) -> dict[str, Record]:
    """Name -> record of each router and of the baselines, on one table with one featuriser.

    A router that cannot learn from this table (say, for want of a label) is left out of it, and that is said.
    answers: only the queries to which every model's answer was recorded; nothing where they are too few to judge by.
    """
    read_from = [table, *(answers_of(table) if answers else ())]
    content = hashlib.sha256(b"".join(path.read_bytes() for path in read_from)).hexdigest()[:16]
    names = [BASELINES, PLAIN_KNN, *routers]
    label = f"{table.stem}-answers" if answers else table.stem
    records: dict[str, Record] = {}
    made: Ground | None = None
    chosen: Chosen = {}
    with Steps(f"{label}, {features}", len(names)) as steps:
        for done, name in enumerate(names):
            steps.at(done, name)
            path = args.cache / f"{label}.{features}.{name.replace(' ', '-').replace(':', '-')}.json"
            mark = mark_of(name, content, features, args)
            known = read(path, mark) if args.resume else None
            if known is None:
                if made is None and (made := ready(table, features, args, answers=answers)) is None:
                    return {}
                if name == CASCADE:
                    known = {"mark": mark, **cascade_record(made, recorded_answers(*answers_of(table)))}
                else:
                    try:
                        known = {"mark": mark, **measured(name, made, chosen)}
                    except PolyrouteError as problem:
                        say(f"{label}, {features}: left out: {name}: {problem}")
                        continue
                write(path, known)
                if "aiq" in known:
                    say(f"{label}, {features}: {name} {known['aiq']:.4f}")
            records[name] = known
    return records


def answers_of(table: Path) -> list[Path]:
    """The files that hold the texts of a table's answers."""
    return sorted(table.parent.glob(f"{table.stem}*_responses.parquet"))


def ready(table: Path, features: str, args: argparse.Namespace, *, answers: bool = False) -> Ground | None:
    """The queries of which every model's outcome (and answer) is known, with features; None: too few to judge by."""
    outcomes = answered(load_outcomes(table), table)
    if answers:
        texts = np.array([bool(query.text) for query in outcomes.queries])
        outcomes = with_answers(outcomes.take(texts), recorded_answers(*answers_of(table)))
        if (outcomes.labels["split"] == "test").sum() < FEWEST:
            return None
    outcomes = embedded(outcomes, features, table)
    outcomes = Outcomes(counted(outcomes.queries), outcomes.pool, outcomes.values, outcomes.observed, outcomes.labels)
    return ground(outcomes, args.resamples, args.seed)


def cascade_record(table: Ground, answers: Mapping[tuple[str, str], str]) -> Record:
    """The flow that looks at the cheap answer before paying for a dear one, replayed on recorded answers."""
    return {"routes": True} | record_of(verified_cascade_curve(table.train, table.test, answers, name=CASCADE), table)


def measured(name: str, table: Ground, chosen: Chosen) -> Record:
    """One record: of the baselines together, or of a router. chosen: settings found so far, more are added."""
    if name == BASELINES:
        return {"about": about(table), "rows": bench_baselines(table)}
    started = time.perf_counter()
    if name == PLAIN_KNN:
        plain, tried = plain_knn(table)
        return {"chosen": {PLAIN_KNN: dict(tried.settings)}} | bench_router(name, plain, table)
    families = families_of(name) if name in QUALITY_ROUTERS else ()
    choose_settings([family for family in families if family not in chosen], table, chosen)
    router: Router = quality_router(name, chosen) if name in QUALITY_ROUTERS else resolve_router(name)()
    took = time.perf_counter() - started
    own = {family: chosen[family] for family in families}
    record = {"chosen": own, "choosing_s": took} | bench_router(name, router, table)
    if name == DEFAULT:
        record |= speed_of_pools(router, table)
    return record | size_of(router, table)


def size_of(router: Router, table: Ground) -> Record:
    """What the router takes as a file, and how long that takes to load; nothing for a kind that cannot be saved."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.npz"
        try:
            save(router, path, features="bench", pool=table.test.pool)
        except UnknownNameError:
            return {}
        started = time.perf_counter()
        load(path)
        return {"load_s": time.perf_counter() - started, "file_mb": path.stat().st_size / 1e6}


def choose_settings(families: Sequence[str], table: Ground, chosen: Chosen) -> None:
    """Settings of some families by the metric on valid, put into `chosen`."""
    for family in families:
        tried = []
        with Steps(f"choosing settings of {family}", len(FAMILIES[family].settings)) as steps:
            for one in try_settings(family, table.trials):
                tried.append(one)
                steps.at(len(tried))
        chosen[family] = dict(best(tried).settings)


def mark_of(name: str, content: str, features: str, args: argparse.Namespace) -> str:
    """What a record depends on, as one word: table, features, resamples, settings tried, and the router's code."""
    settings: list[Any] = []
    modules = {"polyroute.offline.frontier", "polyroute.routers.linear", "polyroute.routers.knn"}
    if name in QUALITY_ROUTERS:
        families = families_of(name)
        settings = [[family, [dict(one) for one in FAMILIES[family].settings]] for family in families]
        modules |= {FAMILIES[family].build.__module__ for family in families}
    if name == CASCADE:
        modules.add("polyroute.recipes.verified")
    elif name not in (BASELINES, PLAIN_KNN):
        modules.add(ROUTERS.get(name, name).partition(":")[0])
    facts = [PROTOCOL, name, content, features, args.resamples, args.seed, settings, code_of(modules)]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def section(table: str, features: str, records: Mapping[str, Record], output: Path) -> Section:
    """The rows of one table, and their plot beside the page."""
    from polyroute.offline.plot import plot_frontiers

    facts = records[BASELINES]["about"]
    rows: Sequence[Record] = [
        *(record for name, record in records.items() if name != BASELINES), *records[BASELINES]["rows"],
    ]  # fmt: skip
    marked = next((name for name in (CASCADE, DEFAULT) if name in records), None)
    marked = marked or max(rows[: len(records) - 1], key=lambda row: row["aiq"])["name"]
    drawn = [{**row, "marked": row["name"] == marked} for row in rows
             if len(row["cost"]) > 1 and row["name"] != SHRUNK_KNN]  # fmt: skip
    name = f"{output.stem}-{table}-{features}.svg"
    title = f"{table}, test split ({facts['test']:,} queries), {features}"
    plot_frontiers(output.parent / name, drawn, facts, title)
    return Section(table, features, facts, rows, name)
