"""A linear estimate that keeps only counters: each cluster a query belongs to says what it knows of each candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.routers.rows import PerPool, check_shape, embeddings, extend, nothing, observed, within
from polyroute.routers.shrink import PRIOR_VARIANCE, spread
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Diagonal:
    """Estimate a metric from contexts w [p] by one pair of counters an edge (entry c of the context, candidate j).

    Seeing outcome y adds w_c^2 to weight[c, j] and w_c (y - centre) to score[c, j]: sums in any order, so shards that
    learned apart merge by adding, and late outcomes do no harm. mean = centre + sum_c w_c score / (kappa + weight),
    std = noise * sqrt(sum_c w_c^2 / (kappa + weight)). The context is the query's embedding as it is: wrap the router
    in `routers/context.py` `Contextual`. With one-hot contexts this equals ridge regression a candidate; with
    overlapping ones it leaves out what entries say of each other, and is surer than it should be.

    centre: what a candidate never tried is expected to yield. kappa: pseudo-weight an edge. noise: std of one outcome;
    None: measured. With UCB(z=alpha), noise=1 and centre=0 it is Diag-LinUCB as published.
    Source: Yi et al. 2023, Online Matching (arXiv:2307.15893), after LinUCB (arXiv:1003.0146).
    """

    def __init__(self, metric: str = "quality", *, centre: float = 0.5, kappa: float = 1.0, noise: float | None = None):
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a pseudo-weight above 0")
        if noise is not None and not noise > 0:
            raise ConfigError("noise", got=noise, expected="the std of one outcome, above 0, or None")
        if not np.isfinite(centre):
            raise ConfigError("centre", got=centre, expected="a finite number in the metric's unit")
        self.metric, self.centre, self.kappa, self.noise = metric, centre, kappa, noise
        self._forget()
        self._tables = PerPool(self._work_out)

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.edges_ = np.zeros((2, 0, 0))  # weight and score, [2, p, columns]
        self.sums_ = np.zeros((3, 0))  # a candidate: of what was left over the centre, of its square, of outcomes

    def fit(self, outcomes: Outcomes) -> Self:
        """Start again from these outcomes; there may be none."""
        y, seen = observed(outcomes, self.metric)
        self._forget()
        self._add(outcomes, y, seen)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Add outcomes to the counters."""
        self._add(outcomes, *observed(outcomes, self.metric))

    def _add(self, outcomes: Outcomes, y: Array, seen: Array) -> None:
        if not len(outcomes.queries):
            return
        w = self._context(outcomes.queries)
        at = self._open(outcomes.pool, w.shape[1])
        left = np.where(seen, y - self.centre, 0.0)
        np.add.at(self.edges_[0].T, at, (seen.T @ w**2))
        np.add.at(self.edges_[1].T, at, left.T @ w)
        np.add.at(self.sums_.T, at, np.stack([left.sum(0), (left**2).sum(0), seen.sum(0)], axis=1))
        self._tables.clear()

    def _open(self, pool: Sequence[Candidate], p: int) -> Array:
        at = extend(self.column_, pool)
        gained = len(self.column_) - self.edges_.shape[2]
        if not self.edges_.shape[1]:
            self.edges_ = np.zeros((2, p, self.edges_.shape[2]))
        if gained:
            self.edges_ = np.pad(self.edges_, ((0, 0), (0, 0), (0, gained)))
            self.sums_ = np.pad(self.sums_, ((0, 0), (0, gained)))
        return at

    def _context(self, queries: Sequence[Query]) -> Array:
        return embeddings(queries, self.edges_.shape[1] or None).astype(float)

    def merge(self, other: Diagonal, base: Diagonal | None = None) -> None:
        """Take in what another replica learned; exactly what learning it here would have given.

        base: the router that both started from; None: both started from nothing.
        Raises: ConfigError if they do not count the same thing; ShapeError for other contexts.
        """
        for replica, sign in ((other, 1.0), (base, -1.0)):
            if replica is None or not replica.column_:
                continue
            for name in ("metric", "centre"):
                if getattr(replica, name) != getattr(self, name):
                    raise ConfigError(name, got=getattr(replica, name), expected=f"{getattr(self, name)!r}, as here")
            p = replica.edges_.shape[1]
            if self.edges_.shape[1] not in (0, p):
                raise ShapeError("edges", got=replica.edges_.shape[1:], expected=(self.edges_.shape[1], "any"))
            at = self._open([Candidate(name) for name in replica.column_], p)
            self.edges_[:, :, at] += sign * replica.edges_
            self.sums_[:, at] += sign * replica.sums_
        self._tables.clear()

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """What each edge says: its mean over the centre, and its share of variance, each [p, m]."""
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        weight, score = np.pad(self.edges_, ((0, 0), (0, 0), (0, 1)))[:, :, at]
        variance = np.append(self._variance(), self._common())[at]
        return score / (self.kappa + weight), variance / (self.kappa + weight)

    def _untried(self, m: int) -> tuple[Array, Array]:
        """As `_work_out`, one row [1, m], before anything was learned."""
        return np.zeros((1, m)), np.full((1, m), self._common() / self.kappa)

    def _variance(self) -> Array:
        """Of one outcome of each candidate, [columns]."""
        if self.noise is not None:
            return np.full(len(self.column_), self.noise**2)
        total, square, count = self.sums_
        return spread(total, square, count, self.metric)

    def _common(self) -> float:
        """Variance of one outcome of a candidate never tried: the mean of the others'."""
        counted = self.sums_[2] > 0
        if self.noise is None and not counted.any():
            return PRIOR_VARIANCE.get(self.metric, max(self.centre**2, 1e-12))
        return float(self._variance()[counted].mean()) if self.noise is None else self.noise**2

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        w = self._context(queries)
        if not len(w) or not len(pool):
            return nothing(self.metric, len(w), len(pool))
        over, variance = self._tables(pool)
        if not len(over):  # nothing learned yet: any width will do
            over, variance = (np.repeat(row, w.shape[1], axis=0) for row in self._untried(len(pool)))
        return {self.metric: Estimate(within(self.metric, self.centre + w @ over), np.sqrt(w**2 @ variance))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {name: getattr(self, name) for name in ("metric", "centre", "kappa", "noise")}
        return params | {"candidates": list(self.column_)}, {"edges": self.edges_, "sums": self.sums_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        metric = params["metric"]
        router = cls(metric, centre=params["centre"], kappa=params["kappa"], noise=params["noise"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        m = len(router.column_)
        router.edges_ = check_shape("edges", np.asarray(arrays["edges"], float), (2, None, m))
        router.sums_ = check_shape("sums", np.asarray(arrays["sums"], float), (3, m))
        return router
