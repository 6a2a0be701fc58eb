"""The outcomes of similar past queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError
from polyroute.protocols import Router
from polyroute.routers.rows import PerPool, check_shape, embeddings, extend, nothing, observed, unit_rows
from polyroute.routers.shrink import Overall, overall, pick, shrunk
from polyroute.types import Array, Candidate, Estimates, Outcomes, Query

CHUNK = 4_000_000  # similarities held at once


class KNN:
    """Estimate a metric as its mean over the k most similar past queries, shrunk to the candidate's overall mean.

    The baseline to beat: `(sum over k of y + kappa * mean) / (count + kappa)`, where count is how many of the k
    neighbours the candidate answered. Choosing the best of many noisy means is a winner's curse; kappa repairs it.
    With a `prior` (fitted beforehand, never fitted here) estimates shrink to its prediction instead, and candidates
    never seen are served from it; without one they are an error. The std is the doubt about the mean.
    Source: kNN routing as in RouterBench (arXiv:2403.12031); the shrinkage is added here.
    """

    def __init__(self, k: int = 50, kappa: float = 50.0, metric: str = "quality", prior: Router | None = None):
        if k < 1:
            raise ConfigError("k", got=k, expected="a number of neighbours, 1 or more")
        if not kappa >= 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations, 0 or more")
        self.k, self.kappa, self.metric, self.prior = k, kappa, metric, prior
        self.size_: int | None = None  # n past queries remembered; None: not fitted
        self._overall = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        self.size_, self.column_ = 0, dict[str, int]()
        self._x, self._table, self.sums_ = np.zeros((0, 0), np.float32), np.zeros((0, 3, 0)), np.zeros((3, 0))
        self.update(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Remember the queries of `outcomes` too. Candidates never met get columns of their own."""
        if self.size_ is None:
            raise NotFittedError(self)
        y, seen = observed(outcomes, self.metric)
        some = seen.any(axis=1)
        x = unit_rows(embeddings(outcomes.queries, self._x.shape[1] or None))[some]
        at = extend(self.column_, outcomes.pool)
        rows = np.zeros((len(x), 3, len(self.column_)))
        rows[:, 0, at], rows[:, 1, at], rows[:, 2, at] = y[some], y[some] ** 2, seen[some]
        gained = len(self.column_) - self._table.shape[2]
        table = np.pad(self._table, ((0, 0), (0, 0), (0, gained))) if gained else self._table
        held = self._x if self._x.shape[1] else np.zeros((0, x.shape[1]), np.float32)
        self._x, self._table = _append(held, self.size_, x), _append(table, self.size_, rows)
        self._view(self.size_ + len(x), np.pad(self.sums_, ((0, 0), (0, gained))) + rows.sum(axis=0))

    def _view(self, size: int, sums: Array) -> None:
        self.size_, self.sums_ = size, sums  # sums: [3, m], of table_ over its rows
        self.x_, self.table_ = self._x[:size], self._table[:size]  # [n, d] unit rows; [n, 3, m] y, y squared, seen
        self._overall.clear()

    def _work_out(self, pool: Sequence[Candidate]) -> Overall:
        return overall(self.sums_, self.column_, pool, self.metric, prior=self.prior)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.size_ is None:
            raise NotFittedError(self)
        known = self._overall(pool)
        x = unit_rows(embeddings(queries, self.x_.shape[1] or None))
        if not len(x) or not len(pool):
            return nothing(self.metric, len(x), len(pool))
        total, square, count = pick(self._neighbours(x), known.at)
        centre, doubt = known.mean, None
        if self.prior is not None:
            centre, doubt = self.prior.predict(queries, pool)[self.metric]
        return {self.metric: shrunk(total, square, count, centre, known.variance, self.kappa, doubt)}

    def _neighbours(self, x: Array) -> Array:
        """Sums over the k nearest past queries: of y, of y squared and of what was seen, [q, 3, columns]."""
        n, k = len(self.x_), min(self.k, len(self.x_))
        sums = np.zeros((len(x), *self.table_.shape[1:]))
        step = max(1, CHUNK // max(n, 1))
        for start in range(0, len(x) if n else 0, step):
            part = x[start : start + step]
            # One query: a dot per row. A threaded matrix product would stall for milliseconds on a busy machine.
            alike = np.vecdot(self.x_, part[0])[None] if len(part) == 1 else part @ self.x_.T
            near = np.argpartition(alike, n - k, axis=1)[:, n - k :]  # [q, k]
            for i, row in enumerate(near, start):
                sums[i] = self.table_.take(row, axis=0).sum(axis=0)
        return sums

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.size_ is None:
            raise NotFittedError(self)
        params = {"k": self.k, "kappa": self.kappa, "metric": self.metric, "prior": self.prior}
        return params | {"candidates": list(self.column_)}, {"x": self.x_, "table": self.table_, "sums": self.sums_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(candidates)}
        router._x = check_shape("x", np.asarray(arrays["x"], np.float32), (None, None))
        router._table = check_shape("table", np.asarray(arrays["table"], float), (len(router._x), 3, len(candidates)))
        router._view(len(router._x), check_shape("sums", np.asarray(arrays["sums"], float), (3, len(candidates))))
        return router


def _append(buffer: Array, used: int, rows: Array) -> Array:
    """A buffer with `rows` after its first `used`. It doubles when full, so a row costs a row on average."""
    total = used + len(rows)
    if total > len(buffer):
        bigger = np.empty((max(total, 2 * used), *buffer.shape[1:]), buffer.dtype)
        bigger[:used] = buffer[:used]
        buffer = bigger
    buffer[used:total] = rows
    return buffer
