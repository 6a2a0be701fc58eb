"""How long an answer will take, learned part by part: waiting, reading the prompt, writing the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.protocols import OnlineRouter
from polyroute.routers.length import Length
from polyroute.routers.load import answered, promised
from polyroute.routers.rows import PerPool, check_shape, extend, prompt_tokens
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

TYPICAL_READ_TOKENS_PER_S = 2000.0  # a profile says nothing of reading
PARTS = 3  # waiting for the first token, reading the prompt, writing the answer


class Latency:
    """Estimate `latency` in seconds until the last token as a sum of three parts, each a multiple of its promise.

    `Load` learns one factor a candidate: how late it runs. Here waiting, reading and writing have a factor each, so a
    server that is quick to start and slow to write is told from its opposite, and long prompts from long answers. The
    factors start from 1 (what the profile promises, stated constants where it is silent) as if `kappa` answers had
    kept the promise; they are a ridge on lateness, which weighs a second more in short answers than in long ones, and
    forget: the last `memory` answers weigh most. Works before `fit` and for any candidate. The std is the doubt about
    the mean, of the factors and of the length.
    """

    def __init__(self, length: OnlineRouter | None = None, kappa: float = 2.0, memory: float = 500.0):
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations above 0")
        if not memory > 1:
            raise ConfigError("memory", got=memory, expected="a number of answers above 1")
        self.length: OnlineRouter = Length() if length is None else length
        self.kappa, self.memory = kappa, memory
        self._forget()
        self._promise = PerPool(promised)
        self._factor = PerPool(self._work_out)

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.moment_ = np.zeros((0, PARTS + 1, PARTS + 1))  # faded sums over answers of shares and lateness, squared
        self.count_ = np.zeros(0)  # faded answers

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
        parts = self._parts(outcomes.queries, outcomes.pool, tokens)  # [3, n, m]
        whole = parts.sum(axis=0)
        rows = np.concatenate([parts, latency[None]]) / whole  # [4, n, m]: shares of the promise, and lateness
        at = extend(self.column_, outcomes.pool)
        gained = len(self.column_) - len(self.count_)
        self.moment_ = np.pad(self.moment_, ((0, gained), (0, 0), (0, 0)))
        self.count_ = np.pad(self.count_, (0, gained))
        keep = 1.0 - 1.0 / self.memory
        for i, j in enumerate(at):
            row = rows[:, seen[:, i], i]
            weight = keep ** np.arange(row.shape[1] - 1, -1, -1)
            self.moment_[j] = self.moment_[j] * keep ** row.shape[1] + (row * weight) @ row.T
            self.count_[j] = self.count_[j] * keep ** row.shape[1] + weight.sum()
        self._factor.clear()

    def _parts(self, queries: Sequence[Query], pool: Sequence[Candidate], tokens: Array) -> Array:
        """Seconds promised for waiting, reading and writing, [3, n, m]. tokens: [n, m] of the answer."""
        first, per_token = self._promise(pool)
        read = prompt_tokens(queries)[:, None] / TYPICAL_READ_TOKENS_PER_S
        waiting = np.broadcast_to(first, tokens.shape)
        return np.stack([waiting, np.broadcast_to(read, tokens.shape), tokens * per_token])

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """Factors [m, 3], not below a hundredth, and their covariance [m, 3, 3]."""
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        moment = np.pad(self.moment_, ((0, 1), (0, 0), (0, 0)))[at]
        count = np.append(self.count_, 0.0)[at]
        prior = self.kappa * np.eye(PARTS)
        gram = moment[:, :PARTS, :PARTS] + prior
        target = moment[:, :PARTS, PARTS] + self.kappa
        factor = np.linalg.solve(gram, target[:, :, None])[:, :, 0]
        square = moment[:, PARTS, PARTS] - 2 * (factor * moment[:, :PARTS, PARTS]).sum(axis=1)
        square = square + np.einsum("mk,mkl,ml->m", factor, moment[:, :PARTS, :PARTS], factor)
        noise = (np.maximum(square, 0.0) + 1.0) / (count + 1.0)  # of one answer's lateness; 1 before any
        return np.maximum(factor, 0.01), noise[:, None, None] * np.linalg.inv(gram)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        tokens, tokens_std = self.length.predict(queries, pool)["output_tokens"]
        parts = self._parts(queries, pool, tokens)
        factor, covariance = self._factor(pool)
        mean = np.einsum("knm,mk->nm", parts, factor)
        variance = np.einsum("knm,mkl,lnm->nm", parts, covariance, parts)
        if tokens_std is not None:
            _, per_token = self._promise(pool)
            variance = variance + (tokens_std * per_token * factor[:, 2]) ** 2
        return {"latency": Estimate(mean, np.sqrt(np.maximum(variance, 0.0)))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"length": self.length, "kappa": self.kappa, "memory": self.memory}
        return params | {"candidates": list(self.column_)}, {"moment": self.moment_, "count": self.count_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["length"], params["kappa"], params["memory"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        shape = (len(router.column_), PARTS + 1, PARTS + 1)
        router.moment_ = check_shape("moment", np.asarray(arrays["moment"], float), shape)
        router.count_ = check_shape("count", np.asarray(arrays["count"], float), shape[:1])
        return router
