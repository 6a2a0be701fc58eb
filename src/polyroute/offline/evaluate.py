"""One router beside the honest baselines: expected qualities and costs in, curves to compare out.

Letters: n queries, m candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, EstimateError, ShapeError
from polyroute.offline.baselines import best_single, cheapest_single, dataset_means, single_models
from polyroute.offline.choose import cost_router
from polyroute.offline.frontier import TRADE_OFFS, Curve, choose, realised
from polyroute.offline.pairs import weak_and_strong
from polyroute.offline.split import out_of_fold
from polyroute.protocols import Router
from polyroute.routers.knn import KNN
from polyroute.types import Array, Estimate, Outcomes

SHRUNK_KNN, DATASET_ORACLE, RANDOM_MIX, ORACLE = "shrunk kNN", "data-set oracle", "random mix", "oracle"


class Expected(NamedTuple):
    """What is expected of queries nobody has learned from."""

    quality: Mapping[str, Array]  # name of a router or baseline -> [n, m]
    cost: Array  # [n, m] USD, the same for all, so that they differ in quality only
    reference: float  # USD: the unit of a trade-off, from the queries learned from


def baseline_quality(train: Outcomes, test: Outcomes) -> dict[str, Array]:
    """Expected quality [n, m] by the baselines that learn: KNN at its defaults, and the means of each data set.

    The second is left out where the table has no label `dataset`.
    """
    knn = KNN().fit(train).predict(test.queries, test.pool)["quality"].mean
    found = {SHRUNK_KNN: knn}
    if "dataset" in train.labels and "dataset" in test.labels:
        found[DATASET_ORACLE] = dataset_means(train, test).mean
    return found


def expected_by(router: Router, name: str, train: Outcomes | None, test: Outcomes, reference: float) -> Expected:
    """What a fitted router expects of a table. A router without cost gets `estimated_cost` of `train`.

    Raises: ConfigError for a router that does not predict quality, or no Estimate of it; ShapeError for another shape
    than [n, m]; EstimateError for a number that is not finite, which would be chosen by its place in the pool.
    """
    estimates = router.predict(test.queries, test.pool)
    if not isinstance(estimates, Mapping) or "quality" not in estimates:
        got = sorted(estimates) if isinstance(estimates, Mapping) else type(estimates).__name__
        raise ConfigError("router", got=got, expected="one that predicts quality")
    quality = finite_mean("quality", estimates["quality"], test)
    cost = finite_mean("cost", estimates["cost"], test) if "cost" in estimates else estimated_cost(train, test)
    return Expected({name: quality}, cost, reference)


def finite_mean(metric: str, estimate: object, test: Outcomes) -> Array:
    """The mean of one metric, [n, m] float. Raises: ConfigError, ShapeError or EstimateError; see `expected_by`."""
    if not isinstance(estimate, Estimate):
        raise ConfigError(f"router: {metric}", got=type(estimate).__name__, expected="Estimate(mean) or with a std")
    mean = np.asarray(estimate.mean, dtype=np.float64)
    if mean.shape != test.observed.shape:
        raise ShapeError(f"router: {metric}", got=mean.shape, expected=test.observed.shape)
    if not (known := np.isfinite(mean)).all():
        row, column = (int(place) for place in np.argwhere(~known)[0])
        raise EstimateError(metric, row=row, column=column, got=float(mean[row, column]))
    return mean


def estimated_cost(train: Outcomes | None, test: Outcomes) -> Array:
    """[n, m] USD by the protocol's cost router: fitted on `train`, or without one on the other folds of `test`."""
    if train is not None:
        return cost_router().fit(train).predict(test.queries, test.pool)["cost"].mean
    found = out_of_fold(lambda learned, held: cost_router().fit(learned).predict(held.queries, held.pool), test)
    return found["cost"]


def curves_of(expected: Expected, test: Outcomes, train: Outcomes | None = None) -> list[Curve]:
    """The routers and baselines of `expected`, then single models, their mix and the oracle, on a complete table.

    All choose by the same policy and the same cost estimates; the oracle alone knows what each answer will score and
    cost. train: where the best single model is chosen; None: in hindsight, on the table itself.
    """
    curves = [
        realised(name, choose(quality, expected.cost, TRADE_OFFS, expected.reference), test)
        for name, quality in expected.quality.items()
    ]
    known = choose(test.values["quality"], test.values["cost"], TRADE_OFFS, expected.reference)
    singles = [best_single(test, train), cheapest_single(test), single_models(test)]
    return [*curves, *singles, realised(ORACLE, known, test)]


def pair_gains(expected: Expected, test: Outcomes) -> tuple[dict[str, Array], Array] | None:
    """Strong minus weak quality [n] as each router expects it, and as it was; None unless the pool is a pair."""
    if len(test.pool) != 2:
        return None
    weak, strong = weak_and_strong(test)
    gains = {name: quality[:, strong] - quality[:, weak] for name, quality in expected.quality.items()}
    truth = test.values["quality"]
    return gains | {"random calls": np.zeros(len(test))}, truth[:, strong] - truth[:, weak]
