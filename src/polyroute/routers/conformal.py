"""How far an outcome may lie from its prediction: intervals that hold as often as they promise.

Letters: n queries, m candidates, r held-out pairs of a prediction and what came.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.protocols import OnlineRouter, Router
from polyroute.routers.calibrate import told
from polyroute.routers.rows import nothing, observed, within
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

FLOOR = 1e-12  # a prediction below this is taken as this where residuals are relative


class Bounds(NamedTuple):
    """Limits between which an outcome will lie, [n, m] each, in the metric's unit."""

    low: Array
    high: Array


class Conformal:
    """A router with limits on what will come: cost, latency or length of an answer, whatever its distribution.

    `fit` predicts a share of the groups (labels["group"], else queries) by a router fitted on the others, keeps how
    far the outcomes lay from it, and then fits the router on everything. `bounds(..., level=0.9)` holds for nine of
    ten new outcomes of queries like those, on average over queries and each candidate for itself (pooled, for a
    candidate with too few held-out outcomes for the level: then as often over all candidates together). `upper`
    is one-sided: what a budget or a deadline must allow for. `predict` passes the router's estimates unchanged.
    relative: residuals count in shares of the prediction, since long answers scatter more; else in its unit.
    Right-or-wrong quality has no useful interval of outcomes; see `Calibrated` for those.
    Source: split conformal prediction, Vovk, Gammerman and Shafer 2005; by candidate: Mondrian, ibid.
    """

    def __init__(
        self, router: Router, metric: str = "cost", *, share: float = 0.25, relative: bool = True, seed: int = 0
    ):
        if not 0 < share < 1:
            raise ConfigError("share", got=share, expected="a share of the queries to hold out, above 0 and below 1")
        self.router, self.metric, self.share, self.relative, self.seed = router, metric, share, relative, seed
        self.residuals_: dict[str, Array] | None = None  # candidate -> [r] sorted

    def fit(self, outcomes: Outcomes) -> Self:
        """Raises: OutcomesError where there are not two groups to hold one out of."""
        group = np.unique(outcomes.labels.get("group", np.arange(len(outcomes))), return_inverse=True)[1]
        num_groups = int(group.max(initial=-1)) + 1
        self.residuals_ = {}
        if num_groups > 1:
            order = np.random.default_rng(self.seed).permutation(num_groups)
            held = order[group] < max(1, round(self.share * num_groups))
            judge = copy.deepcopy(self.router).fit(outcomes.take(~held))
            self._learn(judge, outcomes.take(held))
        else:
            observed(outcomes, self.metric)  # complains of a missing metric
        self.router.fit(outcomes)
        return self

    def _learn(self, judge: Router, held: Outcomes) -> None:
        """Keep how far `held` lay from what a router expected that had not seen it."""
        known, estimates = told(judge, held)
        if self.metric not in estimates:
            raise OutcomesError(f"expected a router that predicts {self.metric!r}, got {sorted(estimates)}.")
        y, seen = observed(held, self.metric)
        for j, column in enumerate(known):
            rows, mean = seen[:, column], estimates[self.metric].mean[:, j]
            if rows.any():
                self.residuals_[held.pool[column].id] = np.sort(self._distance(y[rows, column], mean[rows]))  # type: ignore[index]

    def _distance(self, came: Array, said: Array) -> Array:
        away = came - said
        return away / np.maximum(said, FLOOR) if self.relative else away

    def update(self, outcomes: Outcomes) -> None:
        """Pass the outcomes to the router, if it learns online; the limits stay until the next `fit`."""
        if self.residuals_ is None:
            raise NotFittedError(self)
        if isinstance(self.router, OnlineRouter):
            self.router.update(outcomes)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.residuals_ is None:
            raise NotFittedError(self)
        return self.router.predict(queries, pool)

    def bounds(self, queries: Sequence[Query], pool: Sequence[Candidate], level: float = 0.9) -> Bounds:
        """Limits that hold with probability `level`; infinite (or the metric's own limit) where that cannot be said."""
        tail = (1 - self._level(level)) / 2
        return self._between(queries, pool, tail, 1 - tail)

    def upper(self, queries: Sequence[Query], pool: Sequence[Candidate], level: float = 0.9) -> Array:
        """[n, m] what will not be exceeded with probability `level`; infinite where that cannot be said."""
        return self._between(queries, pool, 0.0, self._level(level)).high

    def _level(self, level: float) -> float:
        if not 0 < level < 1:
            raise ConfigError("level", got=level, expected="a probability above 0 and below 1")
        return level

    def _between(self, queries: Sequence[Query], pool: Sequence[Candidate], low: float, high: float) -> Bounds:
        estimates = self.predict(queries, pool)
        if not len(queries) or not len(pool):
            empty: Estimate = nothing(self.metric, len(queries), len(pool))[self.metric]
            return Bounds(empty.mean, empty.mean)
        mean = estimates[self.metric].mean
        assert self.residuals_ is not None
        pooled = np.sort(np.concatenate([np.empty(0), *self.residuals_.values()]))
        limits = [
            limits_of(own if enough(own := self.residuals_.get(c.id, pooled), low, high) else pooled, low, high)
            for c in pool
        ]
        scale = np.maximum(mean, FLOOR) if self.relative else np.ones_like(mean)
        below, above = (within(self.metric, mean + scale * np.array(side)) for side in zip(*limits, strict=True))
        return Bounds(below, above)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.residuals_ is None:
            raise NotFittedError(self)
        options = ("router", "metric", "share", "relative", "seed")
        params = {name: getattr(self, name) for name in options} | {"candidates": list(self.residuals_)}
        return params, {f"residuals{i}": held for i, held in enumerate(self.residuals_.values())}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        options = {name: params[name] for name in ("metric", "share", "relative", "seed")}
        router = cls(params["router"], **options)
        router.residuals_ = {
            name: np.asarray(arrays[f"residuals{i}"], float) for i, name in enumerate(params["candidates"])
        }
        return router


def enough(residuals: Array, low: float, high: float) -> bool:
    """Whether limits of these probabilities are finite."""
    bottom, top = limits_of(residuals, low, high)
    return (low == 0 or math.isfinite(bottom)) and math.isfinite(top)


def limits_of(residuals: Array, low: float, high: float) -> tuple[float, float]:
    """Residuals between which a new one lies with probability `high - low` or more. residuals: [r] sorted.

    With r exchangeable residuals a new one takes each of the r + 1 places among them with equal probability.
    """
    r = len(residuals)
    top = math.ceil((r + 1) * high - 1e-9)  # counted from 1
    bottom = math.floor((r + 1) * low + 1e-9)
    above = float(residuals[top - 1]) if 1 <= top <= r else math.inf
    below = float(residuals[bottom - 1]) if 1 <= bottom <= r else -math.inf
    return below, above
