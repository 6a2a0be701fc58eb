"""Static facts about candidates as metrics: size, age, verbosity; whatever an objective may weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import OutcomesError, UnknownCandidateError
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Attributes:
    """Each attribute as a metric that no query changes, brought to 0..1 over the candidates known.

    values: attribute -> {candidate id: number in any unit}. With `scale` the weight of an attribute means: this much
    utility between the candidate that has least and the one that has most of it. Exact, so the std is 0.
    """

    def __init__(self, values: Mapping[str, Mapping[str, float]], *, scale: bool = True):
        self.values, self.scale = {name: dict(row) for name, row in values.items()}, scale
        for name, row in self.values.items():
            if not row or not np.isfinite(list(row.values())).all():
                raise OutcomesError(f"attribute {name!r}: expected a finite number for each candidate, got {row}.")

    def fit(self, outcomes: Outcomes) -> Self:
        """Nothing is learned; the facts are given."""
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        return {name: self._metric(row, len(queries), pool) for name, row in self.values.items()}

    def _metric(self, row: Mapping[str, float], n: int, pool: Sequence[Candidate]) -> Estimate:
        if missing := [c.id for c in pool if c.id not in row]:
            raise UnknownCandidateError(missing, known=row)
        value = np.array([row[c.id] for c in pool], dtype=float)
        if self.scale:
            low, high = min(row.values()), max(row.values())
            value = (value - low) / (high - low) if high > low else np.zeros_like(value)
        mean = np.tile(value, (n, 1))
        return Estimate(mean, np.zeros_like(mean))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"values": self.values, "scale": self.scale}, {}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        return cls(params["values"], scale=params["scale"])
