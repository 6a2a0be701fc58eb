"""The candidate whose profile points where the query does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.errors import NotFittedError
from polyroute.routers.profiles import Profiles
from polyroute.routers.rows import embeddings, nothing, observed, unit_rows, within
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

LEVEL = 5.0  # pseudo-outcomes at the common level


class Cosine:
    """Estimate quality as the candidate's level plus a scale times the cosine of query and profile.

    Cosines are taken less their mean over the fitted candidates: what all profiles share tells none apart. The plainest
    consumer of profiles: what a profile is worth shows here undiluted. The scale is one number, fitted on half of the
    queries with profiles built from the other half; then the profiles are built from all. `extend` adds a newcomer by
    a few outcomes. texts, vectors: descriptions and their embeddings, handed to the profiles.
    Source: the cosine consumer of RouteProfile; levels in the metric's unit and the fitted scale are added here.
    """

    def __init__(
        self, profiles: Profiles, texts: dict[str, str] | None = None, vectors: dict[str, Array] | None = None
    ):
        self.profiles, self.texts, self.vectors = profiles, texts, vectors
        self.scale_: float | None = None

    def fit(self, outcomes: Outcomes) -> Self:
        half = np.arange(len(outcomes)) % 2 == 0
        self.scale_, self.common_ = 1.0, 0.0
        if half.sum() and (~half).sum():
            self._build(outcomes.take(half))
            rest = outcomes.take(~half)
            alike = self._alike(rest.queries, rest.pool)
            y, seen = observed(rest, "quality")
            left = np.where(seen, y - self.level(rest.pool), 0.0)
            count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
            left = np.where(seen, left - left.sum(axis=1, keepdims=True) / count, 0.0)
            self.scale_ = float(max((left * alike).sum() / max((alike**2 * seen).sum(), 1e-9), 0.0))
        self._build(outcomes)
        return self

    def _build(self, outcomes: Outcomes) -> None:
        self.profiles.fit(outcomes, self.texts, self.vectors)
        self.ids_ = list(self.profiles.ids_)
        y, seen = observed(outcomes, "quality")
        self.common_ = float(y[seen].mean())

    def extend(self, outcomes: Outcomes, text: str = "", vector: Array | None = None) -> None:
        """Add the one candidate of `outcomes`; see Profiles.extend."""
        if self.scale_ is None:
            raise NotFittedError(self)
        self.profiles.extend(outcomes, text, vector)

    def level(self, pool: Sequence[Candidate]) -> Array:
        """[m] mean score, shrunk to the mean of all."""
        count = np.array([self.profiles.history_[c.id].count for c in pool])
        mean = self.profiles.levels([c.id for c in pool])
        level: Array = (count * mean + LEVEL * self.common_) / (count + LEVEL)
        return level

    def _alike(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        x = unit_rows(embeddings(queries, len(self.profiles.mean_))) - self.profiles.mean_
        profiles = unit_rows(self.profiles.vectors(self.ids_))
        alike: Array = unit_rows(x) @ (unit_rows(self.profiles.vectors([c.id for c in pool])) - profiles.mean(axis=0)).T
        return alike

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.scale_ is None:
            raise NotFittedError(self)
        if not len(queries) or not len(pool):
            return nothing("quality", len(queries), len(pool))
        level = self.level(pool)
        count = np.array([self.profiles.history_[c.id].count for c in pool])
        mean = within("quality", level + self.scale_ * self._alike(queries, pool))
        doubt = np.sqrt(0.25 / (count + LEVEL) + 0.01 * self.scale_**2)  # the level's, and a tenth of the scale
        return {"quality": Estimate(mean, np.tile(doubt, (len(queries), 1)))}
