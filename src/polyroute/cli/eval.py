"""polyroute eval: replay recorded outcomes through a router, beside honest baselines, with intervals."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute.artefact import ROUTERS, Artefact, load, resolve_router
from polyroute.cli.fit import add_table_options, choose, made_with
from polyroute.cli.progress import Steps, say
from polyroute.cli.tables import answered, counted, embedded, is_journal, read_outcomes, split_of, writable
from polyroute.errors import ConfigError, OutcomesError, UnknownNameError
from polyroute.offline.calibration import brier, expected_calibration_error
from polyroute.offline.choose import QUALITY_ROUTERS, quality_router
from polyroute.offline.compare import Compared, compare, compare_pair, resamples_of
from polyroute.offline.evaluate import (
    RANDOM_MIX,
    SHRUNK_KNN,
    Expected,
    baseline_quality,
    curves_of,
    expected_by,
    pair_gains,
)
from polyroute.offline.frontier import Curve, one_price, reference_cost, scale_of
from polyroute.offline.split import folds, has_split, part
from polyroute.protocols import Router
from polyroute.routers.default import Default
from polyroute.types import Array, Outcomes

EXAMPLE = """examples:
  polyroute eval r.npz outcomes/routerbench.parquet --plot frontier.png
  polyroute eval linear outcomes/llmrouter9.parquet         fit it here on train and valid, judge it on test
  polyroute eval my_module:MyRouter table.parquet           your own router, with its defaults
  polyroute eval r.npz table.parquet --folds 5              fitted anew in each of 5 group-aware folds of all rows

AIQ is the mean quality of the router's frontier over the range of cost from the cheapest to the dearest single model;
Q@50 % the quality at half of the dearest model's mean cost; cost@95 % the cost to reach 95 % of the best single model's
quality, relative to that model's cost. The last line is one JSON object."""

MOST_FOLDS = 100  # each fits a router anew


class Judged(NamedTuple):
    """A table to judge on, and what is expected of it."""

    test: Outcomes
    train: Outcomes | None  # what the baselines learned from; None: the folds
    expected: Expected


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="replay recorded outcomes through a router, beside honest baselines",
        description="Replay recorded outcomes through a router at many trade-offs of quality and cost.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = ", ".join(QUALITY_ROUTERS)
    parser.add_argument("router", metavar="ROUTER", help=f"a file of polyroute fit; {named}; or package.module:Class")
    parser.add_argument("outcomes", type=Path, metavar="OUTCOMES", help="Parquet table, one row per query and model")
    parser.add_argument("--split", default="test", help="judge on this split, or `all` (default: %(default)s)")
    parser.add_argument("--folds", type=int, metavar="N", help="cross-validate over all rows, by group, instead")
    parser.add_argument("--resamples", type=int, default=500, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FRONTIER.png", help="draw the frontier as PNG and as SVG")
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="also write the last line to a file")
    add_table_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if is_journal(args.outcomes):
        raise OutcomesError(f"{args.outcomes}: expected a table in which every model answered, got a journal.")
    if args.resamples < 1:
        raise ConfigError("--resamples", got=args.resamples, expected="1 or more")
    if args.folds is not None and not 2 <= args.folds <= MOST_FOLDS:
        raise ConfigError("--folds", got=args.folds, expected=f"2 to {MOST_FOLDS}; 5 or 10 are usual")
    if args.plot is not None:
        writable("--plot", args.plot, ".png", ".svg")
    if args.json is not None:
        writable("--json", args.json, ".json")
    artefact = opened(args.router)
    features = artefact.features if artefact else args.features
    name = str(artefact.info.get("router", artefact.kind)) if artefact else args.router.rpartition(":")[2]
    outcomes = read_outcomes(args.outcomes, features, allow_shared_groups=args.allow_shared_groups,
                             any_cost=args.any_cost)  # fmt: skip
    judged = judge(artefact, name, wanted(outcomes, artefact, args), features, args)
    warn_of_scale(name, judged.expected.quality[name])
    curves = curves_of(judged.expected, judged.test, judged.train)
    counts = resamples_of(judged.test, np.random.default_rng(args.seed), args.resamples)
    against = [other for other in (RANDOM_MIX, SHRUNK_KNN) if other in [curve.name for curve in curves]]
    rows = compare(curves, judged.test, counts, against)
    print("\n".join(table_of(rows, judged.test)))
    result = result_of(name, features, rows, judged, counts, args)
    for line in extra_lines(rows[0], result, measure(judged.test)):
        print(line)
    if args.plot is not None:
        result["plot"] = draw(args, name, rows, curves, judged.test, counts)
    text = json.dumps(finite(result), allow_nan=False)
    if args.json is not None:
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def warn_of_scale(name: str, quality: Array) -> None:
    """Say where estimates can hardly be qualities: the trade-offs then weigh costs against another unit."""
    low, high = float(quality.min()), float(quality.max())
    if low < -1.0 or high > 2.0:
        say(f"warning: {name} estimates qualities from {low:.3g} to {high:.3g}, where 0 to 1 is expected: "
            f"costs weigh wrongly against them")  # fmt: skip


def opened(where: str) -> Artefact | None:
    """The file, or None for a router that is fitted here. Raises: UnknownNameError, ArtefactError."""
    if where in QUALITY_ROUTERS:
        return None
    if ":" in where and not Path(where).exists():
        importable(where)
        return None
    if where in ROUTERS:
        hint = f"Fit it first: polyroute fit TABLE --router {where} -o r.npz" if where in ("default", "cascade") else ""
        expected = f"a router of quality: {', '.join(QUALITY_ROUTERS)}, or a file"
        raise ConfigError("ROUTER", got=where, expected=expected, hint=hint)
    if not Path(where).suffix and not Path(where).exists():
        raise UnknownNameError("router or file", where, QUALITY_ROUTERS)
    return load(where)


def importable(where: str) -> None:
    """Raises: ConfigError saying what kept `package.module:Class` from being imported, or why it is no router."""
    try:
        found = resolve_router(where)
    except UnknownNameError as unknown:
        hint = f"{unknown.__cause__}. A module in this folder is found with PYTHONPATH=. in front of the command."
        raise ConfigError(
            "ROUTER", got=where, expected="package.module:Class that can be imported", hint=hint
        ) from None
    if not isinstance(found, type) or not all(callable(getattr(found, name, None)) for name in ("fit", "predict")):
        raise ConfigError("ROUTER", got=where, expected="a class with the methods fit and predict")
    try:
        signature(found).bind()
    except TypeError as lacking:
        hint = "Make a subclass that fills its settings in."
        raise ConfigError("ROUTER", got=f"{where}, {lacking}", expected="a class made without arguments",
                          hint=hint) from None  # fmt: skip
    except ValueError:
        pass  # a class that states no signature shows when it is made


def wanted(outcomes: Outcomes, artefact: Artefact | None, args: argparse.Namespace) -> Outcomes:
    """The rows and models that can be judged, or learned from by a baseline."""
    if artefact is not None:
        known = [candidate.id for candidate in artefact.pool]
        both = [candidate.id for candidate in outcomes.pool if candidate.id in known]
        if len(both) < (least := min(2, len(known))):
            raise OutcomesError(
                f"{args.outcomes}: expected at least {least} of the router's models ({', '.join(known[:6])}), "
                f"got {len(both)}. Fit a router on a table with these models."
            )
        if left := [candidate.id for candidate in outcomes.pool if candidate.id not in known]:
            say(f"left out, since the router never saw them: {', '.join(left)}")
        outcomes = outcomes.among(both)
    if args.folds is None and args.split != "all" and "split" in outcomes.labels:
        split_of(outcomes, args.split, args.outcomes)  # complains where there is none
        learns = ("train", "valid") if artefact is None else ("train",)
        outcomes = outcomes.take(np.isin(outcomes.labels["split"], (args.split, *learns)))
    return answered(outcomes, args.outcomes)


def judge(artefact: Artefact | None, name: str, outcomes: Outcomes, features: str, args: argparse.Namespace) -> Judged:
    """Split the table, fit what has to be fitted, and say what is expected of the queries to judge on."""
    outcomes = embedded(outcomes, features, args.outcomes)
    anew = artefact is not None and artefact.info.get("tokens") == "text"
    outcomes = replace(outcomes, queries=counted(outcomes.queries, anew=anew))
    if args.folds is not None:
        return Judged(outcomes, None, crossed(artefact, name, outcomes, args))
    if args.split == "all" or "split" not in outcomes.labels:
        if artefact is None:
            raise OutcomesError(f"{args.outcomes}: expected a split to fit {name} on, got none. Use --folds 5.")
        if artefact.info.get("table") == args.outcomes.name:
            say("warning: the router learned from some of these queries; --split test or --folds 5 give honest figures")
        test, train = outcomes, None
    else:
        if artefact is not None and args.split in str(artefact.info.get("split")).split(" and "):
            say(f"warning: the router learned from split {args.split}; --split test or --folds 5 give honest figures")
        test, train = part(outcomes, args.split), part(outcomes, "train") if has_split(outcomes, "train") else None
    learned = train if train is not None else test
    stated = artefact.info.get("reference_cost_usd") if artefact else None
    router = artefact.router if artefact else fitted(None, name, outcomes, learned, args)
    reference = float(stated or reference_cost(learned))
    expected = expected_by(router, name, train, test, reference)
    if train is not None and args.split != "train":
        expected = expected._replace(quality={**expected.quality, **baseline_quality(train, test)})
    return Judged(test, train, expected)


def fitted(
    artefact: Artefact | None, name: str, outcomes: Outcomes, train: Outcomes, args: argparse.Namespace
) -> Router:
    """A new router like the one asked for, fitted. Raises: ConfigError for one whose `fit` forgets to return it."""
    router: Router = unfitted(artefact, name, outcomes, args).fit(train)
    if not hasattr(router, "predict"):
        raise ConfigError("ROUTER", got=f"{args.router}, whose fit returns {type(router).__name__}",
                          expected="a router whose fit returns it", hint="End fit with: return self")  # fmt: skip
    return router


def unfitted(artefact: Artefact | None, name: str, outcomes: Outcomes, args: argparse.Namespace) -> Router:
    """A new router like the one in the file, or of the name given; settings of a name are chosen without `test`."""
    if artefact is not None:
        if artefact.kind == "default":
            return Default(args.seed)
        if name not in QUALITY_ROUTERS:
            raise ConfigError("--folds", got=args.router, expected="a file of polyroute fit, or a router's name")
        return quality_router(name, artefact.info["chosen"])
    if args.router in QUALITY_ROUTERS:
        learn = outcomes.take(outcomes.labels["split"] != args.split) if args.folds is None else outcomes
        chosen, scores, judged = choose(name, learn, args.seed)
        for family, settings in chosen.items():
            say(f"{family}: {settings}, {judged} {scores[family]:.4f}")
        return quality_router(name, chosen)
    router: Router = resolve_router(args.router)()
    return router


def crossed(artefact: Artefact | None, name: str, outcomes: Outcomes, args: argparse.Namespace) -> Expected:
    """Expectations for every query by routers that did not see its group."""
    if artefact is not None and artefact.info.get("prior"):
        say("note: in the folds the router is fitted without its prior")
    quality: dict[str, Array] = {}
    cost = np.empty(outcomes.observed.shape)
    with Steps("folds", args.folds) as steps:
        for done, (train, held_out, rows) in enumerate(folds(outcomes, args.folds, args.seed), 1):
            inner = Outcomes(train.queries, train.pool, train.values, train.observed,
                             {key: column for key, column in train.labels.items() if key != "split"})  # fmt: skip
            router = fitted(artefact, name, inner, train, args)
            found = expected_by(router, name, train, held_out, 1.0)
            cost[rows] = found.cost
            for key, values in {**found.quality, **baseline_quality(train, held_out)}.items():
                quality.setdefault(key, np.empty(cost.shape))[rows] = values
            steps.at(done)
    return Expected(quality, cost, reference_cost(outcomes))


def table_of(rows: list[Compared], test: Outcomes) -> list[str]:
    """The comparison as lines for people."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}  {measure(test):>7}  95 % interval   Q@25 %  Q@50 %  Q@75 %  cost@95 %  cost@100 %"]
    for row in rows:
        low, high = row.intervals["aiq"]
        rest = "".join(shown(value, at) for value, at in zip(row.summary[1:], (8, 8, 8, 11, 12), strict=True))
        lines.append(f"{row.name:<{width}}  {row.summary.aiq:>7.3f}  [{low:.3f}, {high:.3f}]{rest}")
    return lines


def measure(test: Outcomes) -> str:
    """What the first number of a summary is: where all models have one price there is no frontier to average over."""
    scale = scale_of(*(test.values[name].mean(axis=0) for name in ("quality", "cost")))
    return "quality" if one_price(scale) else "AIQ"


def shown(value: float, width: int) -> str:
    text = "-" if math.isnan(value) else "never" if math.isinf(value) else f"{value:.3f}"
    return f"{text:>{width}}"


def result_of(
    name: str, features: str, rows: list[Compared], judged: Judged, counts: Array, args: argparse.Namespace
) -> dict[str, Any]:
    """Everything that was measured, JSON-able."""
    test, said = judged.test, judged.expected.quality[name]
    result: dict[str, Any] = {
        "command": "eval", "router": name, "file": args.router, "table": args.outcomes.name, "features": features,
        "split": f"{args.folds} folds" if args.folds else args.split, "queries": len(test), "models": len(test.pool),
        "resamples": len(counts) - 1, "seed": args.seed,
        "rows": [
            {"name": row.name, **row.summary._asdict(),
             "intervals": {key: list(value) for key, value in row.intervals.items()},
             "aiq_minus": {other: list(difference) for other, difference in row.difference.items()}}
            for row in rows
        ],
        "calibration": {"brier": brier(said, test.values["quality"]),
                        "ece": expected_calibration_error(said, test.values["quality"])},
        "made_with": made_with(),
    }  # fmt: skip
    if (pair := pair_gains(judged.expected, test)) is not None:
        gains, truth = pair
        result["pair"] = []
        for key, gain in gains.items():
            summary, intervals = compare_pair(gain, truth, counts)
            result["pair"].append({"name": key, **summary._asdict(),
                                   "intervals": {k: list(v) for k, v in intervals.items()}})  # fmt: skip
    return result


def extra_lines(row: Compared, result: dict[str, Any], first: str) -> list[str]:
    """Paired differences, the pair table and calibration, for people."""
    lines = [f"{row.name} minus {other}: {value:+.3f} {first} [{low:+.3f}, {high:+.3f}], paired"
             for other, (value, low, high) in row.difference.items()]  # fmt: skip
    for found in result.get("pair", []):
        low, high = found["intervals"]["apgr"]
        lines.append(f"{found['name']:<16} APGR {found['apgr']:.3f} [{low:.3f}, {high:.3f}]  "
                     f"CPT(50 %) {found['cpt_50']:.3f}  CPT(80 %) {found['cpt_80']:.3f}")  # fmt: skip
    calibration = result["calibration"]
    return [*lines, f"predicted quality: Brier {calibration['brier']:.4f}, calibration error {calibration['ece']:.4f}"]


def draw(
    args: argparse.Namespace, name: str, rows: list[Compared], curves: list[Curve], test: Outcomes, counts: Array
) -> list[str]:
    from polyroute.offline.plot import plot_frontier

    how = f"{args.folds} folds" if args.folds else f"{args.split} split" if args.split != "all" else "all rows"
    title = f"{name} on {args.outcomes.stem}, {how} ({len(test):,} queries)"
    drawn = plot_frontier(args.plot, rows, curves, test, counts, title=title)
    print(f"wrote {drawn.png} and {drawn.svg}")
    return [str(drawn.png), str(drawn.svg)]


def finite(value: Any) -> Any:
    """The same with NaN, which JSON lacks, as null, and numbers to six digits."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
