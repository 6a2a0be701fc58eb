"""polyroute bench newcomer: what a few labelled answers of a model bring to a pool, beside what all bring."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.artefact import pack, unpack
from polyroute.cli.progress import Steps
from polyroute.cli.tables import answered, counted, embedded
from polyroute.data.outcomes import load_outcomes
from polyroute.errors import ConfigError
from polyroute.offline.bootstrap import interval
from polyroute.offline.newcomer import ASK, MEASURES, Joining, joined, share_of_gain
from polyroute.offline.split import folds, part
from polyroute.protocols import OnlineRouter
from polyroute.routers.default import Default
from polyroute.types import Outcomes

FOLDS = 3
TARGET = 0.9


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `bench newcomer` alone."""
    alone = parser.add_argument_group("for newcomer")
    alone.add_argument("--answers", type=int, default=30, help="labelled answers of a newcomer (default: %(default)s)")
    alone.add_argument("--draws", type=int, default=8, help="of those answers (default: %(default)s)")
    judges = "queries to judge by: folds of train and valid, or a split, learning from train (default: %(default)s)"
    alone.add_argument("--judge", default="folds", choices=("folds", "valid", "test"), help=judges)


def run(args: argparse.Namespace, tables: Sequence[Path]) -> int:
    """Measure each table and write the page."""
    for name, least in (("answers", 1), ("draws", 2)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name}", got=getattr(args, name), expected=f"{least} or more")
    features = args.features[0]
    found = {}
    for table in tables:
        outcomes = embedded(answered(load_outcomes(table), table), features, table)
        outcomes = replace(outcomes, queries=counted(outcomes.queries, anew=True))
        found[table.stem] = rejoined(table.stem, outcomes, args)
    args.output.write_text(page(found, args), encoding="utf-8")
    print(f"wrote {args.output}")
    print(json.dumps({"command": "bench newcomer", "judged_by": args.judge, "answers": args.answers, "tables": {
        name: {way: figures(joinings, args.seed) for way, joinings in ways.items()} for name, ways in found.items()
    }}))  # fmt: skip
    return 0


def rejoined(name: str, outcomes: Outcomes, args: argparse.Namespace) -> dict[str, list[Joining]]:
    """Each model's return, by way of asking."""
    if args.judge == "folds":
        known = outcomes.take(outcomes.labels["split"] != "test") if "split" in outcomes.labels else outcomes
        pairs = [(learned, held) for learned, held, _ in folds(known, FOLDS, args.seed)]
    else:
        pairs = [(part(outcomes, "train"), part(outcomes, args.judge))]
    ways: dict[str, list[Joining]] = {way: [] for way in ASK}
    with Steps(f"{name}: models left out", len(outcomes.pool)) as steps:
        every = joined(
            lambda learned: Default().fit(learned), again, pairs,
            answers=args.answers, draws=args.draws, resamples=args.resamples, seed=args.seed,
        )  # fmt: skip
        for done, one in enumerate(every, 1):
            for way, joining in one.items():
                ways[way].append(joining)
            steps.at(done)
    return ways


def again(router: OnlineRouter) -> OnlineRouter:
    """The same router, to learn apart from it."""
    found: OnlineRouter = unpack(*pack(router))
    return found


def figures(joinings: Sequence[Joining], seed: int) -> dict[str, dict[str, Any]]:
    """By measure: share of the gain with its interval, whose gain it is, the mean and the worst change."""
    found: dict[str, dict[str, Any]] = {}
    for k, measure in enumerate(MEASURES):
        share = share_of_gain(joinings, k, np.random.default_rng(seed))
        change = np.array([(one.few.mean(axis=0) - one.without)[0, k] for one in joinings])
        full = np.array([(one.full - one.without)[0, k] for one in joinings])
        found[measure] = {
            "share": round(share.value, 3), "interval": [round(bound, 3) for bound in share.interval],
            "models": list(share.models), "mean_change": round(float(change.mean()), 5),
            "mean_full": round(float(full.mean()), 5), "worst_change": round(float(change.min()), 5),
        }  # fmt: skip
    return found


def page(found: dict[str, dict[str, list[Joining]]], args: argparse.Namespace) -> str:
    """What a person reads."""
    judged = {"folds": f"{FOLDS} group-aware folds of train and valid", "valid": "valid, learning from train",
              "test": "test, learning from train"}[args.judge]  # fmt: skip
    few = args.answers
    lines = [
        "# Newcomers\n",
        f"Each model is left out of the default router and joins it again by `update` with {few} labelled answers, "
        f"{args.draws} draws of them; judged on {judged}. The share is what {few} answers gain over what all gain, "
        "summed over the models whose full gain is clear of zero; intervals are 95 % over queries and draws. `random` "
        "answers are drawn from all, `spread` evenly over tasks and, within a task, over how hard the others found it. "
        f"The target is {TARGET:.0%} with 30.\n",
        f"Made by `polyroute bench newcomer --judge {args.judge} --answers {few} --draws {args.draws} "
        f"--resamples {args.resamples} --features {args.features[0]}`.\n",
        "| table | asked | by | share of gain | clear gain | mean change, any model | with all answers | worst |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for name, ways in found.items():
        for way, joinings in ways.items():
            for measure, row in figures(joinings, args.seed).items():
                low, high = row["interval"]
                share = f"{row['share']:.0%} [{low:.0%}, {high:.0%}]" if row["models"] else "none is clear"
                models = ", ".join(f"`{short(model)}`" for model in row["models"])
                lines.append(f"| {name} | {way} | {measure} | {share} | {models} | {row['mean_change']:+.4f} | "
                             f"{row['mean_full']:+.4f} | {row['worst_change']:+.4f} |")  # fmt: skip
    lines += ["\n## Each model\n", "| table | model | by | with all answers | random | spread |"]
    lines += ["|---|---|---|---:|---:|---:|"]
    for name, ways in found.items():
        for rows in zip(*ways.values(), strict=True):
            for k, measure in enumerate(MEASURES):
                full = (rows[0].full - rows[0].without)[:, k]
                low, high = interval(full[1:])
                gains = " | ".join(f"{(one.few.mean(axis=0) - one.without)[0, k]:+.4f}" for one in rows)
                whole = f"{full[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
                lines.append(f"| {name} | `{short(rows[0].model)}` | {measure} | {whole} | {gains} |")
    return "\n".join(lines) + "\n"


def short(model: str) -> str:
    """A model's name without its maker's."""
    return model.rpartition("/")[2]
