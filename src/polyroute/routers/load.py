"""How long an answer will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.protocols import OnlineRouter
from polyroute.routers.length import Length
from polyroute.routers.rows import PerPool, Unchanged, check_shape, extend, observed
from polyroute.routers.shrink import shrunk
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

TYPICAL_FIRST_TOKEN_S = 0.5  # where a profile does not say
TYPICAL_TOKENS_PER_S = 50.0


class Load:
    """Estimate `latency` in seconds until the last token: what the profile promises, times how late it has been.

    The promise is `first_token_s + completion tokens / tokens_per_s`, stated constants standing in where the profile
    is silent. Each observed latency over its promise is a sample of how late the candidate runs; their mean starts
    from 1 as if `kappa` answers had kept the promise, and forgets: the last `memory` answers weigh most, since load
    changes. Works before `fit` and for any candidate. The std is the doubt about the mean, not the scatter of answers.
    """

    def __init__(self, length: OnlineRouter | None = None, kappa: float = 5.0, memory: float = 200.0):
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations above 0")
        if not memory > 1:
            raise ConfigError("memory", got=memory, expected="a number of answers above 1")
        self.length: OnlineRouter = Length() if length is None else length
        self.kappa, self.memory = kappa, memory
        self._forget()
        self._promise = PerPool(promised)
        self._timing = PerPool(self._take_together)
        self._expected = Unchanged(expected)

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.sums_ = np.zeros((3, 0))  # faded sums of lateness, of its square, and of the weights

    def fit(self, outcomes: Outcomes) -> Self:
        self._forget()
        if "output_tokens" in outcomes.values:
            self.length.fit(outcomes)
        self._learn(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Take in answers, oldest first. A table without latencies changes nothing but the length."""
        if "output_tokens" in outcomes.values:
            self.length.update(outcomes)
        self._learn(outcomes)

    def _learn(self, outcomes: Outcomes) -> None:
        if "latency" not in outcomes.values or not len(outcomes):
            return
        latency, seen, tokens = answered(self.length, outcomes)
        first, per_token = self._promise(outcomes.pool)
        late = latency / (first + tokens * per_token)
        at = extend(self.column_, outcomes.pool)
        self.sums_ = np.pad(self.sums_, ((0, 0), (0, len(self.column_) - self.sums_.shape[1])))
        keep = 1.0 - 1.0 / self.memory
        for i, j in enumerate(at):
            samples = late[seen[:, i], i]
            weight = keep ** np.arange(len(samples) - 1, -1, -1)
            gained = np.array([(weight * samples).sum(), (weight * samples**2).sum(), weight.sum()])
            self.sums_[:, j] = self.sums_[:, j] * keep ** len(samples) + gained
        self._timing.clear()

    def _work_out(self, pool: Sequence[Candidate]) -> Estimate:
        """How late the candidates run, [m]: 1 is as promised."""
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        total, square, count = np.pad(self.sums_, ((0, 0), (0, 1)))[:, at]
        return shrunk(total, square, count, np.ones(len(pool)), np.ones(len(pool)), self.kappa)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        return {"latency": self._expected(self._timing(pool), *self.length.predict(queries, pool)["output_tokens"])}

    def _take_together(self, pool: Sequence[Candidate]) -> tuple[Array, Array, Array]:
        """As late as they run, [m] each: seconds until the first token, per token, and the doubt relative to both."""
        first, per_token = self._promise(pool)
        late, late_std = self._work_out(pool)
        return first * late, per_token * late, late_std / late

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"length": self.length, "kappa": self.kappa, "memory": self.memory}
        return params | {"candidates": list(self.column_)}, {"sums": self.sums_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["length"], params["kappa"], params["memory"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        router.sums_ = check_shape("sums", np.asarray(arrays["sums"], float), (3, len(router.column_)))
        return router


def expected(timing: tuple[Array, Array, Array], tokens: Array, tokens_std: Array | None) -> Estimate:
    """Latency of answers of so many tokens, [n, m]. timing: first token, each token, relative doubt, [m] each."""
    first, per_token, doubt = timing
    mean = first + tokens * per_token
    std = mean * doubt
    return Estimate(mean, std if tokens_std is None else np.hypot(std, tokens_std * per_token))


def answered(length: OnlineRouter, outcomes: Outcomes) -> tuple[Array, Array, Array]:
    """Latencies, which of them were seen, and completion tokens, [n, m] each: as written, else as expected."""
    latency, seen = observed(outcomes, "latency")
    tokens = length.predict(outcomes.queries, outcomes.pool)["output_tokens"].mean
    if "output_tokens" in outcomes.values:  # what was written says more than what was expected
        wrote, counted = observed(outcomes, "output_tokens")
        tokens = np.where(counted, wrote, tokens)
    return latency, seen, tokens


def promised(pool: Sequence[Candidate]) -> Array:
    """Seconds until the first token and per token after, [2, m]."""
    first = [TYPICAL_FIRST_TOKEN_S if c.profile.first_token_s is None else c.profile.first_token_s for c in pool]
    speed = [TYPICAL_TOKENS_PER_S if c.profile.tokens_per_s is None else c.profile.tokens_per_s for c in pool]
    return np.array([np.maximum(first, 1e-3), 1.0 / np.maximum(speed, 1e-3)], dtype=float)
