"""polyroute fit: a quality and a cost router from recorded outcomes, their settings chosen on held-out queries."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute import __version__
from polyroute.artefact import load, save
from polyroute.cli.arguments import seed_of
from polyroute.cli.progress import Steps, elapsed, say
from polyroute.cli.tables import (
    FEATURES,
    answered,
    counted,
    embedded,
    is_journal,
    read_outcomes,
    split_of,
    with_newcomers,
    with_outcomes,
    writable,
)
from polyroute.data.outcomes import complete
from polyroute.data.recorded import recorded_answers
from polyroute.errors import ConfigError, OutcomesError
from polyroute.offline.choose import (
    FAMILIES,
    QUALITY_ROUTERS,
    Chosen,
    best,
    cost_router,
    families_of,
    quality_router,
    trials,
    try_settings,
)
from polyroute.offline.frontier import reference_cost
from polyroute.offline.split import part
from polyroute.protocols import Router
from polyroute.recipes.verified import evidence_of, verified_cascade, with_answers
from polyroute.routers.default import Default
from polyroute.routers.mix import Together
from polyroute.types import Outcomes

EXAMPLE = """examples:
  polyroute fit outcomes/routerbench.parquet --router knn -o r.npz
  polyroute fit outcomes/routerbench.parquet --router default -o r.npz
  polyroute fit outcomes/llmrouter9.parquet --router mix --features minilm-1 -o r.npz
  polyroute fit .polyroute/journal.sqlite --prior default -o r.npz
  polyroute fit outcomes/routellm.parquet --router cascade --answers outcomes/routellm_gsm8k_responses.parquet -o r.npz

A table has one row per query and model: query_id, model, score (0..1), cost_usd, query (or prompt), and, if you have
them, split, group_id, dataset, input_tokens. Learns from split train, chooses settings on split valid, never reads
test; without a column split it uses every row and chooses by group-aware cross-validation. A journal (SQLite) of the
gateway serves too, as far as feedback reported quality. Features recorded-minilm are the vectors of embeddings.npy and
queries.parquet beside the table or one folder above; the gateway cannot make them, so fit with another to serve.
Queries that not every model answered are left out, and counted, unless --partial is given; the default router keeps
them where they are more than a tenth, as with a model that joined late.
The routers named default and cascade set themselves by folds within what they learn from, so they learn from train and
valid together. A cascade reads a model's answer before it pays for another's: it needs the recorded answers of every
model (query_id, model, response) and learns from the queries that have them all."""
DEFAULT, CASCADE = "default", "cascade"
SPLITS = ("train", "valid", "test")


class Fitted(NamedTuple):
    router: Router
    pool: list[Any]  # candidates with profiles
    info: dict[str, Any]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "fit",
        help="fit a router on recorded outcomes",
        description="Fit quality and cost routers on recorded outcomes and write them to one file.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("outcomes", type=Path, metavar="OUTCOMES", help="Parquet table, or the gateway's journal")
    kinds = (*QUALITY_ROUTERS, DEFAULT, CASCADE)
    parser.add_argument("--router", default="knn", choices=kinds, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="R.npz", help="file to write")
    add_table_options(parser)
    parser.add_argument("--prior", metavar="R.npz", help="router to shrink to, or `default`: the shipped cold start")
    parser.add_argument("--answers", nargs="+", type=Path, metavar="FILE", help="texts of the answers, for a cascade")
    parser.add_argument("--partial", action="store_true", help="also learn from queries that not every model answered")
    parser.set_defaults(run=run)


def add_table_options(parser: Any) -> None:
    """Options that fit and eval share."""
    parser.add_argument("--features", default="static-1", choices=FEATURES, help="default: %(default)s")
    parser.add_argument("--seed", type=seed_of, default=0,
                        help="of folds, clusters and resamples (default: %(default)s)")  # fmt: skip
    parser.add_argument("--allow-shared-groups", action="store_true",
                        help="take a table whose near-duplicates stand in several splits: a leak")  # fmt: skip
    parser.add_argument("--any-cost", action="store_true", help="take costs that can hardly be USD as they are")


def run(args: argparse.Namespace) -> int:
    writable("--output", args.output, ".npz")
    if args.prior and args.router == "irt":
        raise ConfigError("--prior", got=args.prior, expected="none with --router irt, which takes none")
    if args.answers and args.router != CASCADE:
        raise ConfigError("--answers", got=f"--router {args.router}", expected="--router cascade, which reads them")
    if not args.answers and args.router == CASCADE:
        raise ConfigError("--answers", got="none", expected="files of recorded answers, for --router cascade")
    outcomes = read_outcomes(args.outcomes, args.features, allow_shared_groups=args.allow_shared_groups,
                             any_cost=args.any_cost)  # fmt: skip
    fitted = fit(outcomes, args)
    fingerprint = save(fitted.router, args.output, features=args.features, pool=fitted.pool, info=fitted.info)
    info = fitted.info
    print(f"{args.router} on {info['table']}, {args.features}: fitted on {info['rows']:,} queries, "
          f"{len(fitted.pool)} models ({info['split']})")  # fmt: skip
    for family, settings in info["chosen"].items():
        print(f"  {family}: " + ", ".join(f"{key} {value}" for key, value in settings.items())
              + f"   {info['chosen_by']} {info['scores'][family]:.4f}")  # fmt: skip
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB, fingerprint {fingerprint})")
    print(json.dumps({"command": "fit", "output": str(args.output), "fingerprint": fingerprint, **info}))
    return 0


def fit(outcomes: Outcomes, args: argparse.Namespace) -> Fitted:
    """Choose settings and fit. Reads the splits train and valid only, or everything where there are no splits."""
    journal = is_journal(args.outcomes)
    split = "split" in outcomes.labels
    if split:
        split_of(outcomes, "train", args.outcomes)  # complains where there is none
        say_of_other_splits(outcomes)
        outcomes = outcomes.take(np.isin(outcomes.labels["split"], ("train", "valid")))
    if not journal and not args.partial and not (args.router == DEFAULT and with_newcomers(outcomes)):
        outcomes = answered(outcomes, args.outcomes, hint="--partial learns from them too")
    outcomes = embedded(outcomes, args.features, args.outcomes)
    outcomes = Outcomes(counted(outcomes.queries), outcomes.pool, outcomes.values, outcomes.observed, outcomes.labels)
    prior = load_prior(args.prior, args.features) if args.prior else None
    outcomes = outcomes if prior else with_outcomes(outcomes)
    if args.router in (DEFAULT, CASCADE):
        return fit_whole(outcomes, args)
    chosen, scores, judged = choose(args.router, outcomes, args.seed, prior)
    train = part(outcomes, "train") if split else outcomes
    quality = quality_router(args.router, chosen, prior)
    # The gateway prices answers by its own list: a journal's few outcomes a model would not do better.
    router = Together([quality] if journal else [quality, cost_router()]).fit(train)
    info = {
        "router": args.router, "table": args.outcomes.name, "features": args.features,
        "split": "train" if split else "all rows", "rows": len(train), "complete": bool(complete(train).all()),
        "chosen": chosen, "chosen_by": judged, "scores": scores, "seed": args.seed, "prior": args.prior,
        "reference_cost_usd": reference_cost(train), "made_with": made_with(),
    }  # fmt: skip
    return Fitted(router, list(outcomes.pool), info)


def say_of_other_splits(outcomes: Outcomes) -> None:
    """Say which splits nobody reads, e.g. `validation`: a table's own name for one of train, valid and test."""
    names, count = np.unique(outcomes.labels["split"], return_counts=True)
    if others := [f"{n:,} of {str(name)!r}" for name, n in zip(names, count, strict=True) if name not in SPLITS]:
        say(f"warning: splits are {', '.join(SPLITS)}; not read: {', '.join(others)} queries")


def fit_whole(outcomes: Outcomes, args: argparse.Namespace) -> Fitted:
    """The routers that set themselves, on every row given: splits train and valid, or all.

    Prompt tokens are counted from the routed text, since that is all `predict` and the gateway will have; a table may
    state those of a longer prompt. Raises: ConfigError for --prior, which they have no use for; OutcomesError where a
    cascade has no query that all models answered in the files of --answers.
    """
    if args.prior:
        raise ConfigError("--prior", got=args.prior, expected=f"none with --router {args.router}: it makes its own")
    table = replace(outcomes, queries=counted(outcomes.queries, anew=True))
    router: Router
    if args.router == CASCADE:
        answers = recorded_answers(*args.answers)
        table = with_answers(table, answers)
        if not len(table):
            raise OutcomesError(
                f"--answers: expected queries of {args.outcomes.name} with an answer of every model, got none."
            )
        say(f"reading the answers to {len(table):,} queries")
        with elapsed("fitting"):
            router = verified_cascade(seed=args.seed).fit(table, evidence_of(table, answers))
    else:
        say(f"fitting on {len(table):,} queries")
        with elapsed("fitting"):
            router = Default(args.seed).fit(table)
    split = "train and valid" if "split" in table.labels else "all rows"
    info = {
        "router": args.router, "table": args.outcomes.name, "features": args.features, "split": split,
        "rows": len(table), "complete": bool(complete(table).all()), "chosen": {}, "scores": {}, "seed": args.seed,
        "prior": None, "reference_cost_usd": reference_cost(table), "tokens": "text", "made_with": made_with(),
    }  # fmt: skip
    return Fitted(router, list(table.pool), info)


def choose(
    name: str, outcomes: Outcomes, seed: int, prior: Router | None = None
) -> tuple[Chosen, dict[str, float], str]:
    """Settings of each family a router needs, their scores, and by what they were chosen."""
    table_trials = trials(outcomes, seed)
    sign, measure = (-1.0, "Brier score") if table_trials[0].cost is None else (1.0, "AIQ")
    chosen: Chosen = {}
    scores = {}
    for family in families_of(name):
        tried = []
        with Steps(f"choosing settings of {family}", len(FAMILIES[family].settings)) as steps:
            for one in try_settings(family, table_trials, prior):
                tried.append(one)
                steps.at(len(tried), f"best {measure} {sign * best(tried).score:.4f}")
        winner = best(tried)
        chosen[family], scores[family] = dict(winner.settings), sign * winner.score
    where = "valid" if len(table_trials) == 1 else f"{len(table_trials)} folds"
    return chosen, scores, f"{measure} on {where}"


def load_prior(where: str, features: str) -> Router:
    """The quality router of a file, or of the shipped cold start. Raises: ConfigError for other features."""
    if where == "default":
        with as_file(files("polyroute.data").joinpath("cold_start.npz")) as path:
            found = load(path)
    else:
        found = load(where)
    if found.features != features:
        raise ConfigError("--prior", got=f"{where}, which reads {found.features}", expected=f"a router on {features}")
    say(f"shrinking to {where} ({found.kind}, fingerprint {found.fingerprint})")
    router: Router = found.router
    return router


def made_with() -> dict[str, str]:
    """Versions that figures may depend on."""
    return {"polyroute": __version__, "numpy": version("numpy"), "python": platform.python_version()}
