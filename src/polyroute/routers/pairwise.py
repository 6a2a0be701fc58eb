"""Scores learned from comparisons: which of two answered better, and whether much better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.heads import Features, features, logistic_posterior, sigmoid
from polyroute.routers.rows import PerPool, check_shape, columns, embeddings, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

CUTS = np.array([-np.inf, -2.0, -1.0, 1.0, 2.0, np.inf])  # of a difference of scores: much worse ... much better
LARGEST = 64  # candidates; the number of pairs grows with the square


class Pairwise:
    """Estimate quality from one linear score a candidate, trained on the five grades of each pair's comparison.

    Two outcomes on one query compare as much better (gap of `much` or more), better (above `ties`), tied, worse or
    much worse. A difference of scores falls into one of five intervals cut at -2, -1, 1, 2 (ordinal logistic). What a
    query's difficulty does to both answers cancels, so few answers a query suffice. Scores have no zero: a two-number
    curve fitted on the outcomes turns them into quality. l2, rank: as for `routers/linear.py`.
    Source: MoMA; the ordinal loss and its cut-points are our reading of it (inferred).
    """

    metric = "quality"

    def __init__(self, l2: float = 10.0, rank: int | None = 32, *, ties: float = 0.0, much: float = 0.75):
        if not l2 > 0:
            raise ConfigError("l2", got=l2, expected="a penalty above 0")
        if not 0 <= ties < much:
            raise ConfigError("ties", got=ties, expected=f"a gap of 0 or more, below much ({much})")
        self.l2, self.rank, self.ties, self.much = l2, rank, ties, much
        self.features_: Features | None = None
        self._heads = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, "quality")
        some, here = seen.any(axis=1), seen.any(axis=0)
        if not some.any():
            raise OutcomesError("values['quality']: expected outcomes to compare, got none.")
        if here.sum() > LARGEST:
            raise OutcomesError(f"pool: expected at most {LARGEST} candidates to compare in pairs, got {here.sum()}.")
        y, seen = y[some][:, here], seen[some][:, here]
        x = unit_rows(embeddings(outcomes.queries))[some]
        rank = self.rank if self.rank is not None and len(x) >= 2 * self.rank else None
        self.features_ = features(x, rank, None)
        phi = self.features_(x, None).astype(float)
        self.column_ = {c.id: j for j, c in enumerate(c for c, known in zip(outcomes.pool, here, strict=True) if known)}
        self.weight_, self.posterior_ = self._newton(phi, y, seen)
        scores = phi @ self.weight_
        design = np.stack([np.ones(seen.sum()), scores[seen]], axis=1)
        self.curve_, _ = logistic_posterior(
            design, np.clip(y[seen], 0, 1), np.zeros(len(design)), np.array([0.25, 0.25])
        )
        self._heads.clear()
        return self

    def _penalty(self, p: int) -> Array:
        penalty = np.full(p, float(self.l2))
        penalty[0] = 0.25
        return penalty

    def _newton(self, phi: Array, y: Array, seen: Array, steps: int = 30) -> tuple[Array, Array]:
        """Weights [p, m] and the posterior covariance of each candidate's own weights [m, p, p]."""
        p, m = phi.shape[1], y.shape[1]
        pairs = [self._pair(phi, y, seen, a, b) for a, b in combinations(range(m), 2)]
        penalty, weight = np.tile(self._penalty(p), m), np.zeros(m * p)
        for _ in range(steps):
            slope, curve = -penalty * weight, np.diag(penalty)
            for pair in pairs:
                a, b = slice(pair.a * p, (pair.a + 1) * p), slice(pair.b * p, (pair.b + 1) * p)
                eta = pair.phi @ (weight[a] - weight[b])
                upper, lower = sigmoid(CUTS[pair.grade + 1] - eta), sigmoid(CUTS[pair.grade] - eta)
                pull = pair.phi.T @ (upper + lower - 1.0)
                bend = pair.phi.T @ (pair.phi * (upper * (1 - upper) + lower * (1 - lower))[:, None])
                slope[a] += pull
                slope[b] -= pull
                curve[a, a] += bend
                curve[b, b] += bend
                curve[a, b] -= bend
                curve[b, a] -= bend
            step = np.linalg.solve(curve, slope)
            weight = weight + step
            if slope @ step < 1e-9:
                break
        cover = np.linalg.inv(curve)
        own = np.stack([cover[j * p : (j + 1) * p, j * p : (j + 1) * p] for j in range(m)])
        return weight.reshape(m, p).T, own

    def _pair(self, phi: Array, y: Array, seen: Array, a: int, b: int) -> _Pair:
        rows = seen[:, a] & seen[:, b]
        return _Pair(a, b, phi[rows], grades(y[rows, a] - y[rows, b], self.ties, self.much))

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        at = columns(self.column_, pool).index
        return self.weight_[:, at], self.posterior_[at]

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.features_ is None:
            raise NotFittedError(self)
        weight, posterior = self._heads(pool)
        x = embeddings(queries, len(self.features_.directions))
        if not len(x) or not len(pool):
            return nothing("quality", len(x), len(pool))
        phi = self.features_(unit_rows(x), None).astype(float)
        mean = sigmoid(self.curve_[0] + self.curve_[1] * (phi @ weight))
        spread = np.sqrt(np.maximum(np.einsum("np,mpq,nq->nm", phi, posterior, phi), 0.0))
        slope = max(abs(float(self.curve_[1])), 1e-3)
        return {"quality": Estimate(mean, slope * spread * mean * (1 - mean))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        params = {name: getattr(self, name) for name in ("l2", "rank", "ties", "much")}
        arrays = {"weight": self.weight_, "posterior": self.posterior_, "curve": self.curve_}
        return params | {"candidates": list(self.column_)}, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["l2"], params["rank"], ties=params["ties"], much=params["much"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        router.features_ = Features(*(np.asarray(arrays[name]) for name in Features._fields))
        p, m = router.features_.directions.shape[1], len(router.column_)
        router.weight_ = check_shape("weight", np.asarray(arrays["weight"]), (p, m))
        router.posterior_ = check_shape("posterior", np.asarray(arrays["posterior"]), (m, p, p))
        router.curve_ = check_shape("curve", np.asarray(arrays["curve"]), (2,))
        return router


class _Pair(NamedTuple):
    """Two candidates' comparisons."""

    a: int
    b: int
    phi: Array  # [r, p] features of the queries both answered
    grade: Array  # [r] int, 0 (a much worse) to 4 (a much better)


def grades(gap: Array, ties: float = 0.0, much: float = 0.75) -> Array:
    """The grade of each gap of quality: 0 much worse, 1 worse, 2 tied, 3 better, 4 much better; the same shape."""
    size = np.where(np.abs(gap) >= much, 2, np.where(np.abs(gap) > ties, 1, 0))
    grade: Array = (2 + np.sign(gap) * size).astype(int)
    return grade
