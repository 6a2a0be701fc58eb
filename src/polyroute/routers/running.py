"""A running mean for each candidate: what a metric has been lately, whatever the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.routers.length import TYPICAL_TOKENS, capped
from polyroute.routers.rows import PerPool, check_shape, embeddings, extend, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class RunningMean:
    """Estimate a metric as the candidate's mean so far, shrunk to everyone's mean, and that to `typical`.

    Made for learning while serving: an update costs microseconds and so does a prediction. The shrinkage counts as
    `kappa` outcomes, so a candidate never tried is expected to do as the others do. Old outcomes fade: the last
    `memory` of a candidate weigh most. The std takes outcomes to scatter by about their mean, as lengths do.
    `output_tokens` are capped at what the query allows. See `routers/length.py` for lengths that depend on the query.

    keyed: a mean of its own for each context, which is where the embedding is largest (wrap the router in
    `routers/context.py` with one one-hot block); it is shrunk to the candidate's mean over all contexts.
    With kappa near 0 it is the exponential moving average with beta = 1 / memory, without the bias of its start.
    """

    def __init__(
        self,
        metric: str = "output_tokens",
        typical: float = TYPICAL_TOKENS,
        *,
        kappa: float = 10.0,
        memory: float = 1000.0,
        keyed: bool = False,
    ):
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations above 0")
        if not memory > 1:
            raise ConfigError("memory", got=memory, expected="a number of outcomes above 1")
        self.metric, self.typical, self.kappa, self.memory, self.keyed = metric, typical, kappa, memory, keyed
        self._forget()
        self._means = PerPool(self._work_out)

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.sums_ = np.zeros((2, 0 if self.keyed else 1, 0))  # [2, contexts, m] faded sums of metric and weights

    def fit(self, outcomes: Outcomes) -> Self:
        self._forget()
        self.update(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Take in outcomes, oldest first."""
        y, seen = observed(outcomes, self.metric)
        key, contexts = self._keys(outcomes.queries)
        at = extend(self.column_, outcomes.pool)
        gained = contexts - self.sums_.shape[1], len(self.column_) - self.sums_.shape[2]
        self.sums_ = np.pad(self.sums_, ((0, 0), (0, gained[0]), (0, gained[1])))
        keep = 1.0 - 1.0 / self.memory
        for k in np.unique(key):
            for i, j in enumerate(at):
                samples = y[seen[:, i] & (key == k), i]
                weight = keep ** np.arange(len(samples) - 1, -1, -1)
                faded = self.sums_[:, k, j] * keep ** len(samples)
                self.sums_[:, k, j] = faded + np.array([weight @ samples, weight.sum()])
        self._means.clear()

    def _keys(self, queries: Sequence[Query]) -> tuple[Array, int]:
        """The context of each query, [n] int, and how many contexts there are."""
        if not self.keyed or not queries:
            return np.zeros(len(queries), dtype=np.intp), self.sums_.shape[1]
        x = embeddings(queries, self.sums_.shape[1] or None)
        return x.argmax(axis=1), x.shape[1]

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """Mean and std of each context, [contexts + 1, m]; the last is for one never met."""
        total, count = self.sums_.sum(axis=(1, 2))
        everyone = (total + self.kappa * self.typical) / (count + self.kappa)
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        sums, seen = np.pad(self.sums_, ((0, 0), (0, 1), (0, 1)))[:, :, at]
        overall = (sums.sum(axis=0) + self.kappa * everyone) / (seen.sum(axis=0) + self.kappa)
        if self.keyed:
            mean = (sums + self.kappa * overall) / (seen + self.kappa)
        else:
            mean, seen = overall[None], seen.sum(axis=0)[None]
        return mean, mean / np.sqrt(1.0 + seen)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        mean, std = self._means(pool)
        if self.keyed:
            key = np.minimum(self._keys(queries)[0], len(mean) - 1)
            mean, std = mean[key], std[key]
        elif len(queries) != 1:
            mean, std = np.repeat(mean, len(queries), axis=0), np.repeat(std, len(queries), axis=0)
        if self.metric == "output_tokens":
            mean, std = capped(mean, std, queries)
        return {self.metric: Estimate(mean, std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"metric": self.metric, "typical": self.typical, "kappa": self.kappa, "memory": self.memory}
        params |= {"keyed": self.keyed, "candidates": list(self.column_)}
        return params, {"sums": self.sums_ if self.keyed else self.sums_[:, 0]}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        given = {name: params[name] for name in ("kappa", "memory", "keyed") if name in params}
        router = cls(params["metric"], params["typical"], **given)
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        sums, m = np.asarray(arrays["sums"], float), len(router.column_)
        router.sums_ = check_shape("sums", sums if router.keyed else sums[:, None], (2, None, m))
        return router
