"""One protocol for every router on one table: learn on `train`, choose settings on `valid`, judge `test` once.

Letters: n queries, m candidates, p operating points, b bootstrap resamples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polyroute.errors import ConfigError
from polyroute.offline.baselines import single_models
from polyroute.offline.bootstrap import weighted_means
from polyroute.offline.calibration import brier, expected_calibration_error
from polyroute.offline.choose import Family, Trial, Tried, best, grid, score, trials
from polyroute.offline.compare import Difference, compare, compare_pair, difference, resamples_of
from polyroute.offline.evaluate import Expected, baseline_quality, curves_of, estimated_cost
from polyroute.offline.frontier import TRADE_OFFS, Curve, choose, one_price, realised, reference_cost, scale_of
from polyroute.offline.pairs import weak_and_strong
from polyroute.offline.split import part
from polyroute.protocols import Router
from polyroute.routers.knn import KNN
from polyroute.types import Array, Candidate, Outcomes, Profile, Query

PROTOCOL = 4  # raised when a figure would come out otherwise: older records are then made anew
PLAIN_KNN = "plain kNN"
PLAIN = Family(KNN, grid(k=(160, 120, 80, 40), kappa=(0.0,)))
TARGETS = {"routerbench": 0.843, "llmrouter9": 0.671, "routellm": 0.787, "routerdc7": 0.628}
TARGET_ECE, TARGET_GAP = 0.03, 0.35
BATCH = 1024  # queries decided at once when decisions are counted
COUNTED_S = 0.5  # for how long
ONE_BY_ONE = 200  # queries decided alone
POOLS = (12, 500)  # candidates one decision is timed among
Record = dict[str, Any]  # one way of routing on one table, JSON-able


class Ground(NamedTuple):
    """A table made ready: what may be learned from, what is judged, and what is the same for every router."""

    train: Outcomes
    test: Outcomes
    trials: list[Trial]  # `valid` judged by routers of `train`
    cost: Array  # [n, m] expected cost of the test queries, USD
    reference: float  # USD, mean cost of the dearest model in `train`
    counts: Array  # [1 + b, n] resamples, the same for all, so that differences are paired


def ground(outcomes: Outcomes, resamples: int = 500, seed: int = 0) -> Ground:
    """outcomes: complete and embedded, with the splits train, valid and test."""
    train, test = part(outcomes, "train"), part(outcomes, "test")
    learn = outcomes.take(outcomes.labels["split"] != "test")
    counts = resamples_of(test, np.random.default_rng(seed), resamples)
    return Ground(train, test, trials(learn, seed), estimated_cost(train, test), reference_cost(train), counts)


def plain_knn(table: Ground) -> tuple[Router, Tried]:
    """kNN without shrinkage, k chosen on valid: what every router is compared with."""
    tried = []
    for settings in PLAIN.settings:
        scores = []
        for trial in table.trials:
            router = PLAIN.build(**settings).fit(trial.train)
            held = trial.held_out
            scores.append(score(router.predict(held.queries, held.pool)["quality"].mean, trial))
        tried.append(Tried(settings, float(np.mean(scores))))
    chosen = best(tried)
    return PLAIN.build(**chosen.settings), chosen


def bench_router(name: str, router: Router, table: Ground) -> Record:
    """Fit on train, judge on test. Raises: ConfigError for a router that does not predict quality."""
    started = time.perf_counter()
    router.fit(table.train)
    fit_s = time.perf_counter() - started
    test = table.test
    estimates = router.predict(test.queries, test.pool)
    if "quality" not in estimates:
        raise ConfigError("router", got=sorted(estimates), expected="one that predicts quality")
    quality = estimates["quality"].mean
    cost = estimates["cost"].mean if "cost" in estimates else table.cost
    record = record_of(realised(name, choose(quality, cost, TRADE_OFFS, table.reference), test), table)
    truth = test.values["quality"]
    record |= {"brier": brier(quality, truth), "ece": expected_calibration_error(quality, truth)}
    if len(test.pool) == 2:
        weak, strong = weak_and_strong(test)
        expected, came = (values[:, strong] - values[:, weak] for values in (quality, truth))
        pair, intervals = compare_pair(expected, came, table.counts)
        record["pair"] = {"apgr": pair.apgr, "interval": list(intervals["apgr"])}
    return record | {"own_cost": "cost" in estimates, "fit_s": fit_s} | speed(router, table)


def bench_baselines(table: Ground) -> list[Record]:
    """What needs no router: single models, their random mix, the table of data-set means, the oracle."""
    learned = baseline_quality(table.train, table.test)
    curves = curves_of(Expected(learned, table.cost, table.reference), table.test, table.train)
    return [record_of(curve, table) for curve in curves]


def record_of(curve: Curve, table: Ground) -> Record:
    """A curve's numbers, their intervals, resamples of its AIQ and of its first point's quality, and its points."""
    (row,) = compare([curve], table.test, table.counts)
    return {
        "name": curve.name,
        **row.summary._asdict(),
        "intervals": {name: list(bounds) for name, bounds in row.intervals.items()},
        "samples": row.samples.tolist(),
        "first_samples": weighted_means(curve.quality[:1], table.counts)[:, 0].tolist(),
        "cost": row.cost.tolist(),
        "quality": row.quality.tolist(),
    }


def about(table: Ground) -> Record:
    """What the page says of the table itself."""
    test = table.test
    quality, cost = (test.values[name].mean(axis=0) for name in ("quality", "cost"))
    mix = single_models(test)
    return {
        "train": len(table.train), "valid": sum(len(trial.held_out) for trial in table.trials), "test": len(test),
        "models": [candidate.id for candidate in test.pool], "cost": cost.tolist(), "quality": quality.tolist(),
        "one_price": one_price(scale_of(quality, cost)), "best_single": float(mix.quality.mean(axis=1).max()),
    }  # fmt: skip


def speed(router: Router, table: Ground) -> Record:
    """Decisions a second in batches, and the time of one decision alone, from ready embeddings."""
    queries, pool = table.test.queries, table.test.pool
    return {"decisions_per_s": in_batches(router, queries, pool, table),
            "decision_p50_us": alone(router, queries, pool, table)}  # fmt: skip


def speed_of_pools(router: Router, table: Ground) -> Record:
    """The same for a router that serves strangers, among 12 and 500 candidates, with the queries' texts and without.

    A ready embedding may be all there is of a query; a router that reads words as well then has less to do.
    """
    bare = [replace(query, text="") for query in table.test.queries]
    found: Record = {"per_s": {}, "alone_us": {}}
    for kind, queries in (("text", table.test.queries), ("no text", bare)):
        found["per_s"][kind] = in_batches(router, queries, table.test.pool, table)
        for size in POOLS:
            price = Profile(price_in=1.0, price_out=2.0)
            strangers = [Candidate(f"stranger {i}", profile=price) for i in range(size - len(table.test.pool))]
            pool = [*table.test.pool, *strangers][:size]
            found["alone_us"][f"{size}, {kind}"] = alone(router, queries, pool, table)
    return {"of_pools": found}


def in_batches(router: Router, queries: Sequence[Query], pool: Sequence[Candidate], table: Ground) -> float:
    """Decisions a second, BATCH queries at a time."""
    some = [queries[i % len(queries)] for i in range(BATCH)]
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < COUNTED_S:
        decide(router, some, pool, table)
        done += BATCH
    return done / (time.perf_counter() - started)


def alone(router: Router, queries: Sequence[Query], pool: Sequence[Candidate], table: Ground) -> float:
    """Median microseconds of one decision."""
    times = []
    for query in [queries[i % len(queries)] for i in range(ONE_BY_ONE)]:
        start = time.perf_counter()
        decide(router, [query], pool, table)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def decide(router: Router, queries: Sequence[Query], pool: Sequence[Candidate], table: Ground) -> Array:
    """The columns chosen [n]: estimates, and the largest utility. Costs that the router lacks are the table's."""
    estimates = router.predict(queries, pool)
    if "cost" in estimates:
        expected = estimates["cost"].mean
    else:
        rows, columns = np.arange(len(queries)) % len(table.cost), np.arange(len(pool)) % table.cost.shape[1]
        expected = table.cost[rows][:, columns]
    found: Array = (estimates["quality"].mean - expected / table.reference).argmax(axis=1)
    return found


def minus(one: Mapping[str, Any], other: Mapping[str, Any], of: str = "samples") -> Difference:
    """The difference of two records' AIQ, with its paired interval, both on the same resamples.

    of: `first_samples` for the quality where cost does not count, in place of AIQ.
    """
    return difference(np.array(one[of]), np.array(other[of]))
