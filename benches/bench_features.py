"""What a featuriser is worth: the same simple routers on different features, by the common protocol.

    python -m benches.bench_features                  train -> valid, and five folds of both
    python -m benches.bench_features --split test     the docs' table: settings chosen on valid, measured once on test
    python -m benches.bench_features --split unseen   each data set predicted from the others: what carries over
    python -m benches.bench_features --centre         the constants of signals/static.py

AIQ: mean quality along the frontier of quality against cost (0..1); on routerdc7, where all models cost the same, the
mean score. First row: the random mix of single models at equal cost; last: an oracle that knows each answer's score.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benches.machine import machine, ticks
from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.recorded import RECORDED_MINILM, recorded_embeddings
from polyroute.offline.baselines import single_models
from polyroute.offline.compare import Compared, compare, resamples_of
from polyroute.offline.frontier import TRADE_OFFS, Curve, choose, realised, reference_cost
from polyroute.offline.split import out_of_fold, part
from polyroute.protocols import Router
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.signals import featuriser, surface
from polyroute.signals.static import surface_weight
from polyroute.types import Array, Estimate, Estimates, Outcomes

SEED = 0
TABLES = ("routerbench", "llmrouter9", "routellm", "routerdc7")
PENALTIES = (3.0, 10.0, 30.0, 100.0)
FAMILIES: dict[str, list[Callable[[], Router]]] = {  # name -> its settings, one of which is chosen on valid
    "knn": [lambda: KNN(k=50, kappa=50.0)],
    "logistic": [lambda p=p: Linear("quality", "logistic", l2=p) for p in PENALTIES],  # type: ignore[misc]
    "ridge": [lambda p=p: Linear("quality", "ridge", l2=p, rank=None) for p in PENALTIES],  # type: ignore[misc]
}
BLOCKS: dict[str, Callable[[Array, Array], Array]] = {  # name -> (static-1 [n, d], MiniLM [n, 384]) -> features
    "tokens alone": lambda static, _: static[:, :256],
    "surface alone": lambda static, _: static[:, 256:],
    "static-1": lambda static, _: static,
    RECORDED_MINILM: lambda _, minilm: minilm,
    f"{RECORDED_MINILM} + surface": lambda static, minilm: np.hstack([minilm, static[:, 256:] * np.hypot(1.0, 0.7)]),
}


def blocks_of(path: Path) -> Iterator[tuple[str, Outcomes]]:
    """(name, the table with these features) of one table, queries that every model answered and that have a text."""
    outcomes = load_outcomes(path)
    minilm = recorded_embeddings([query.id for query in outcomes.queries], path)
    keep = complete(outcomes) & ~np.isnan(minilm).any(axis=1)
    outcomes, minilm = outcomes.take(keep), minilm[keep]
    static = featuriser("static-1")([query.text for query in outcomes.queries])
    for name, features in BLOCKS.items():
        yield name, with_embeddings(outcomes, features(static, minilm))


def estimates(router: Router, train: Outcomes, held_out: Outcomes) -> Estimates:
    """Quality by the router, cost by a ridge on prompt tokens and the same features."""
    cost = Linear("cost", "ridge", l2=3.0, rank=None, tokens="linear").fit(train)
    pool = held_out.pool
    found = {**router.fit(train).predict(held_out.queries, pool), **cost.predict(held_out.queries, pool)}
    floor = 0.02 * train.values["cost"].mean(axis=0)  # a linear cost may fall below zero
    return {"quality": found["quality"], "cost": Estimate(np.maximum(found["cost"].mean, floor))}


def curve_of(name: str, quality: Array, cost: Array, outcomes: Outcomes, reference: float) -> Curve:
    return realised(name, choose(quality, cost, TRADE_OFFS, reference), outcomes)


def measured(curves: Sequence[Curve], outcomes: Outcomes, resamples: int = 2) -> list[Compared]:
    counts = resamples_of(outcomes, np.random.default_rng(SEED), resamples)
    against = [curve.name for curve in curves if curve.name.endswith(RECORDED_MINILM)]
    return compare(curves, outcomes, counts, against)


def aiq_on(router: Router, train: Outcomes, held_out: Outcomes) -> float:
    found = estimates(router, train, held_out)
    curve = curve_of("", found["quality"].mean, found["cost"].mean, held_out, reference_cost(train))
    return measured([curve], held_out)[0].summary.aiq


def dev_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each family's best setting on valid, and over five folds of train and valid; never test."""
    for name, outcomes in blocks_of(path):
        train, valid = part(outcomes, "train"), part(outcomes, "valid")
        both = outcomes.take(outcomes.labels["split"] != "test")
        for family, settings in FAMILIES.items():
            start = time.perf_counter()
            scores = [aiq_on(make(), train, valid) for make in settings]
            best = settings[int(np.argmax(scores))]
            found = out_of_fold(lambda a, b, make=best: estimates(make(), a, b), both, seed=SEED)  # type: ignore[misc]
            curve = curve_of(name, found["quality"], found["cost"], both, reference_cost(both))
            error = np.nanmean((found["quality"] - both.values["quality"]) ** 2)
            mean = np.nanmean((both.values["quality"].mean(axis=0) - both.values["quality"]) ** 2)
            aiq, seconds = measured([curve], both)[0].summary.aiq, time.perf_counter() - start
            yield {
                "table": path.stem, "features": name, "router": family, "valid": round(max(scores), 4),
                "folds": round(aiq, 4), "explained": round(float(1 - error / mean), 4), "seconds": round(seconds, 1),
            }  # fmt: skip


def unseen_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Train and valid, each data set predicted by a router fitted on the others. First: each model's mean there."""
    for place, (name, outcomes) in enumerate(blocks_of(path)):
        both = outcomes.take(outcomes.labels["split"] != "test")
        families: dict[str, Router] = {"knn": KNN(k=50, kappa=50.0), "ridge": Linear("quality", "ridge", 30.0, None)}
        for family, router in families.items() if place else [("none", None), *families.items()]:
            quality, cost = (np.zeros(both.observed.shape) for _ in range(2))
            for dataset in np.unique(both.labels["dataset"]):
                held = both.labels["dataset"] == dataset
                found = estimates(router or families["knn"], both.take(~held), both.take(held))
                means = both.values["quality"][~held].mean(axis=0)
                quality[held] = found["quality"].mean if router else means
                cost[held] = found["cost"].mean
            curve = curve_of(name, quality, cost, both, reference_cost(both))
            error = np.mean((quality - both.values["quality"]) ** 2)
            mean = np.mean((both.values["quality"].mean(axis=0) - both.values["quality"]) ** 2)
            aiq = measured([curve], both)[0].summary.aiq
            yield {
                "table": path.stem, "features": name if router else "model means", "router": family,
                "unseen": round(aiq, 4), "explained": round(float(1 - error / mean), 4),
            }  # fmt: skip


def test_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Settings chosen on valid, fitted on train, measured once on test, with 95 % intervals paired with MiniLM's."""
    curves: list[Curve] = []
    for name, outcomes in blocks_of(path):
        train, valid, test = (part(outcomes, split) for split in ("train", "valid", "test"))
        for family, settings in FAMILIES.items():
            best = settings[int(np.argmax([aiq_on(make(), train, valid) for make in settings]))]
            found = estimates(best(), train, test)
            quality, cost = found["quality"].mean, found["cost"].mean
            curves.append(curve_of(f"{family} / {name}", quality, cost, test, reference_cost(train)))
    oracle = curve_of("oracle", test.values["quality"], test.values["cost"], test, reference_cost(train))
    mix = single_models(test)._replace(name="random mix")
    for found_curve in measured([mix, *curves, oracle], test, resamples=500):
        family, _, name = found_curve.name.rpartition(" / ")
        gap = found_curve.difference.get(f"{family} / {RECORDED_MINILM}")
        low, high = found_curve.intervals["aiq"].low, found_curve.intervals["aiq"].high
        yield {
            "table": path.stem, "features": name, "router": family, "aiq": round(found_curve.summary.aiq, 4),
            "low": round(low, 4), "high": round(high, 4), "less_minilm": gap and [round(x, 4) for x in gap],
        }  # fmt: skip


def centre(folder: Path) -> dict[str, Any]:
    """Means of the surface features on llmrouter9 and a third of routellm, train split, and the spread around them."""
    texts: list[str] = []
    for name, step in (("llmrouter9", 1), ("routellm", 3)):
        train = part(load_outcomes(folder / f"{name}.parquet"), "train")
        texts += [query.text for query in train.queries][::step]
    features = np.stack([surface.surface(text) for text in texts]).astype(float)
    weight = np.array([surface_weight(name) for name in surface.NAMES])
    middle = features.mean(axis=0).round(2)
    spread = float(np.sqrt((((features - middle) * weight) ** 2).sum(axis=1).mean()))
    means = {name: float(x) for name, x in zip(surface.NAMES, middle, strict=True) if x > 0}
    return {"texts": len(texts), "centre": means, "spread": round(spread, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--split", choices=("dev", "test", "unseen"), default="dev")
    p.add_argument("--tables", nargs="+", default=list(TABLES), metavar="NAME")
    p.add_argument("--centre", action="store_true", help="print the constants of signals/static.py and stop")
    args = p.parse_args(argv)
    folder = args.data / "outcomes"
    if args.centre:
        print(json.dumps(centre(folder)))
        return 0
    rows_of = {"dev": dev_rows, "test": test_rows, "unseen": unseen_rows}[args.split]
    before, rows = ticks(), []
    for name in args.tables:
        for row in rows_of(folder / f"{name}.parquet"):
            rows.append(row)
            print("  ".join(f"{value!s:<24}" if isinstance(value, str) else str(value) for value in row.values()))
            sys.stdout.flush()
    facts = {"bench": "features", "machine": machine(before), "seed": SEED, "split": args.split}
    print(json.dumps(facts | {"rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
