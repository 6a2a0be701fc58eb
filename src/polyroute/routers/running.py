"""A running mean for each candidate: what a metric has been lately, whatever the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.routers.length import TYPICAL_TOKENS, capped
from polyroute.routers.rows import PerPool, check_shape, extend, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class RunningMean:
    """Estimate a metric as the candidate's mean so far, shrunk to everyone's mean, and that to `typical`.

    Made for learning while serving: an update costs microseconds and so does a prediction. The shrinkage counts as
    `kappa` outcomes, so a candidate never tried is expected to do as the others do. Old outcomes fade: the last
    `memory` of a candidate weigh most. The std takes outcomes to scatter by about their mean, as lengths do.
    `output_tokens` are capped at what the query allows. See `routers/length.py` for lengths that depend on the query.
    """

    def __init__(
        self,
        metric: str = "output_tokens",
        typical: float = TYPICAL_TOKENS,
        *,
        kappa: float = 10.0,
        memory: float = 1000.0,
    ):
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations above 0")
        if not memory > 1:
            raise ConfigError("memory", got=memory, expected="a number of outcomes above 1")
        self.metric, self.typical, self.kappa, self.memory = metric, typical, kappa, memory
        self._forget()
        self._means = PerPool(self._work_out)

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.sums_ = np.zeros((2, 0))  # faded sums of the metric and of the weights

    def fit(self, outcomes: Outcomes) -> Self:
        self._forget()
        self.update(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Take in outcomes, oldest first."""
        y, seen = observed(outcomes, self.metric)
        at = extend(self.column_, outcomes.pool)
        self.sums_ = np.pad(self.sums_, ((0, 0), (0, len(self.column_) - self.sums_.shape[1])))
        keep = 1.0 - 1.0 / self.memory
        for i, j in enumerate(at):
            samples = y[seen[:, i], i]
            weight = keep ** np.arange(len(samples) - 1, -1, -1)
            self.sums_[:, j] = self.sums_[:, j] * keep ** len(samples) + [weight @ samples, weight.sum()]
        self._means.clear()

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """Mean and std, each [m]."""
        total, count = self.sums_.sum(axis=1)
        everyone = (total + self.kappa * self.typical) / (count + self.kappa)
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        own, seen = np.pad(self.sums_, ((0, 0), (0, 1)))[:, at]
        mean = (own + self.kappa * everyone) / (seen + self.kappa)
        return mean, mean / np.sqrt(1.0 + seen)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        mean, std = (np.repeat(row[None], len(queries), axis=0) for row in self._means(pool))
        if self.metric == "output_tokens":
            mean, std = capped(mean, std, queries)
        return {self.metric: Estimate(mean, std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"metric": self.metric, "typical": self.typical, "kappa": self.kappa, "memory": self.memory}
        return params | {"candidates": list(self.column_)}, {"sums": self.sums_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["metric"], params["typical"], kappa=params["kappa"], memory=params["memory"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        router.sums_ = check_shape("sums", np.asarray(arrays["sums"], float), (2, len(router.column_)))
        return router
