"""How likely a candidate is right, from how alike the query and the candidate's description are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.heads import logistic_posterior, sigmoid
from polyroute.routers.rows import check_shape, embeddings, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Described:
    """One logistic curve over likeness, learned from all candidates and so also true of one never seen.

    A candidate's description is `profile.embedding`, made by the featuriser that embeds the queries. Likeness is the
    cosine, both as it is and as standard deviations above the cosines of the descriptions known in fit, so that a query
    alike to everything favours nobody. A candidate without a description gets the base rate. As a `prior` of
    `routers/linear.py` it serves newcomers, and known candidates start from it.
    """

    def __init__(self, metric: str = "quality", l2: float = 1.0):
        if not l2 > 0:
            raise ConfigError("l2", got=l2, expected="a penalty above 0")
        self.metric, self.l2 = metric, l2
        self.weight_: Array | None = None

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        if not seen.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        if ((y[seen] < 0) | (y[seen] > 1)).any():
            raise OutcomesError(f"values[{self.metric!r}]: expected numbers in 0..1, got others.")
        x = unit_rows(embeddings(outcomes.queries))
        some = seen.any(axis=0)
        known = [described(c, x.shape[1]) for c, tried in zip(outcomes.pool, some, strict=True) if tried]
        self.known_ = np.array([one for one in known if one is not None], np.float32).reshape(-1, x.shape[1])
        phi, has = self._phi(x, outcomes.pool)
        rows = seen & has[None]
        rate = float((y[seen].sum() + 1) / (seen.sum() + 2))
        self.base_ = np.array([rate, np.sqrt(rate * (1 - rate) / (seen.sum() + 2))])
        penalty = np.array([1e-3, self.l2, self.l2])
        self.weight_, self.covariance_ = np.zeros(3), np.diag(1 / penalty)
        if rows.any():
            self.weight_, self.covariance_ = logistic_posterior(phi[rows], y[rows], np.zeros(rows.sum()), penalty)
        return self

    def _phi(self, x: Array, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """Features [n, m, 3] and who has a description [m] bool."""
        texts = [described(c, x.shape[1]) for c in pool]
        has = np.array([text is not None for text in texts], dtype=bool)
        theirs = np.array([np.zeros(x.shape[1]) if t is None else t for t in texts]).reshape(len(pool), x.shape[1])
        cosine = x.astype(float) @ theirs.T  # [n, m]
        others = x.astype(float) @ self.known_.T.astype(float) if len(self.known_) else np.zeros((len(x), 1))
        spread = np.maximum(others.std(axis=1, keepdims=True), 1e-3)
        above = (cosine - others.mean(axis=1, keepdims=True)) / spread
        return np.stack([np.ones(cosine.shape), cosine, above], axis=2), has

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.weight_ is None:
            raise NotFittedError(self)
        x = unit_rows(embeddings(queries, self.known_.shape[1]))
        if not len(x) or not len(pool):
            return nothing(self.metric, len(x), len(pool))
        phi, has = self._phi(x, pool)
        mean = sigmoid(phi @ self.weight_)
        std = np.sqrt(np.maximum(np.vecdot(phi @ self.covariance_, phi), 0.0)) * mean * (1 - mean)
        return {self.metric: Estimate(np.where(has, mean, self.base_[0]), np.where(has, std, self.base_[1]))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.weight_ is None:
            raise NotFittedError(self)
        arrays = {name: getattr(self, name + "_") for name in ("known", "weight", "covariance", "base")}
        return {"metric": self.metric, "l2": self.l2}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(**params)
        for name, shape in {"known": (None, None), "weight": (3,), "covariance": (3, 3), "base": (2,)}.items():
            setattr(router, name + "_", check_shape(name, np.asarray(arrays[name]), shape))
        return router


def described(candidate: Candidate, width: int) -> Array | None:
    """A candidate's description at unit length [width], or None. Raises: OutcomesError for another width."""
    held = candidate.profile.embedding
    if held is None:
        return None
    held = np.asarray(held, dtype=np.float32)
    if held.shape != (width,) or not np.isfinite(held).all():
        raise OutcomesError(
            f"description of candidate {candidate.id!r}: expected {width} finite numbers, got shape {held.shape}. "
            f"Embed it with the featuriser of the queries."
        )
    return unit_rows(held[None])[0]
