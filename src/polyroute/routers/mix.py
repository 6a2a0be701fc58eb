"""Several routers as one: averaged where they estimate the same metric, side by side where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, OutcomesError, ShapeError
from polyroute.protocols import OnlineRouter, Router
from polyroute.routers.rows import observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Mix:
    """Estimate each metric as the weighted average of several routers' estimates of it.

    weights: one per router, 0 or more, scaled to sum to 1; None: equal. `weigh` fits them on outcomes the routers
    were not fitted on. The std is that of a mixture, which counts the routers' disagreement as doubt:
    variance = sum of w (std^2 + (mean - average)^2). A router that does not estimate a metric has no say in it.
    """

    def __init__(self, routers: Sequence[Router], weights: Sequence[float] | None = None):
        if not routers:
            raise ConfigError("routers", got=routers, expected="at least one router")
        self.routers = list(routers)
        self.weights = _scaled(np.ones(len(self.routers)) if weights is None else weights, len(self.routers))

    def fit(self, outcomes: Outcomes) -> Self:
        for router in self.routers:
            router.fit(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Pass the outcomes to the routers that learn online; the others and the weights stay."""
        update_all(self.routers, outcomes)

    def weigh(self, outcomes: Outcomes, metric: str = "quality") -> Self:
        """Weights by non-negative least squares on held-out outcomes, scaled to sum to 1.

        outcomes: a table the routers were not fitted on, or the best memoriser wins.
        """
        y, seen = observed(outcomes, metric)
        if not seen.any():
            raise OutcomesError(f"values[{metric!r}]: expected held-out outcomes to weigh routers by, got none.")
        said = [router.predict(outcomes.queries, outcomes.pool) for router in self.routers]
        told = np.array([0.0 if metric not in e else 1.0 for e in said])
        x = np.stack([e[metric].mean[seen] if metric in e else np.zeros(seen.sum()) for e in said])  # [r, cells]
        weights = nonnegative(x @ x.T, x @ y[seen])
        self.weights = _scaled(weights if weights.any() else told, len(self.routers))
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        said = [router.predict(queries, pool) for router in self.routers]
        metrics = dict.fromkeys(metric for estimates in said for metric in estimates)
        return {metric: self._average(metric, said) for metric in metrics}

    def _average(self, metric: str, said: Sequence[Estimates]) -> Estimate:
        voices = [(w, e[metric]) for w, e in zip(self.weights, said, strict=True) if metric in e]
        total = sum(w for w, _ in voices)
        if total == 0:  # only routers of weight 0 speak of it
            voices, total = [(1.0, estimate) for _, estimate in voices], len(voices)
        mean = sum(w * estimate.mean for w, estimate in voices) / total
        if any(estimate.std is None for _, estimate in voices):
            return Estimate(mean)
        variance = sum(w * (e.std**2 + (e.mean - mean) ** 2) for w, e in voices if e.std is not None) / total
        return Estimate(mean, np.sqrt(variance))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"routers": self.routers}, {"weights": self.weights}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["routers"], arrays["weights"])
        router.weights = np.asarray(arrays["weights"], float)  # scaled once, when they were made
        return router


class Together:
    """Several routers side by side, each with metrics of its own: {**quality, **cost, **latency}."""

    def __init__(self, routers: Sequence[Router]):
        if not routers:
            raise ConfigError("routers", got=routers, expected="at least one router")
        self.routers = list(routers)

    def fit(self, outcomes: Outcomes) -> Self:
        for router in self.routers:
            router.fit(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Pass the outcomes to the routers that learn online."""
        update_all(self.routers, outcomes)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        merged: dict[str, Estimate] = {}
        for router in self.routers:
            estimates = router.predict(queries, pool)
            if twice := merged.keys() & estimates.keys():
                raise ConfigError(
                    "routers", got=sorted(twice), expected="one router a metric", hint="Average routers with Mix."
                )
            merged.update(estimates)
        return merged

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"routers": self.routers}, {}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        return cls(**params)


def update_all(routers: Sequence[Router], outcomes: Outcomes) -> None:
    """Update those routers that can learn from a part of a table, where it has the metrics they learn."""
    for router in routers:
        metric = getattr(router, "metric", None)
        if isinstance(router, OnlineRouter) and (metric is None or metric in outcomes.values):
            router.update(outcomes)


def nonnegative(gram: Array, target: Array) -> Array:
    """The w >= 0 that minimises w' gram w / 2 - target' w, [r].

    Source: Lawson and Hanson 1974, chapter 23 (active sets), on the normal equations.
    """
    weights, passive = np.zeros(len(target)), np.zeros(len(target), dtype=bool)
    tolerance = 1e-10 * max(float(np.abs(target).max(initial=0.0)), 1e-300)
    for _ in range(3 * len(target)):
        slope = np.where(passive, -np.inf, target - gram @ weights)
        if passive.all() or slope.max() <= tolerance:
            break
        passive[slope.argmax()] = True
        while True:
            wanted = np.zeros(len(target))
            wanted[passive] = np.linalg.lstsq(gram[np.ix_(passive, passive)], target[passive], rcond=None)[0]
            falls = passive & (wanted <= 0)
            if not falls.any():
                break
            share = np.full(len(target), np.inf)  # of the way to `wanted` at which each falling weight meets 0
            share[falls] = weights[falls] / np.maximum(weights[falls] - wanted[falls], 1e-300)
            weights = np.maximum(weights + share.min() * (wanted - weights), 0.0)
            passive &= share > share.min()
            weights[~passive] = 0.0
        weights = wanted
    return weights


def _scaled(weights: Sequence[float] | Array, num_routers: int) -> Array:
    array = np.asarray(weights, dtype=float)
    if array.shape != (num_routers,):
        raise ShapeError("weights", got=array.shape, expected=(num_routers,))
    if not (array >= 0).all() or not 0 < array.sum() < np.inf:
        raise ConfigError("weights", got=array.tolist(), expected="numbers of 0 or more, not all 0")
    return array / array.sum()
