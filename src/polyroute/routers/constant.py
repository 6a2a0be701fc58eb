"""One number for every query and candidate: the plainest prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Constant:
    """Estimate a metric as the same mean and std everywhere. It learns nothing and serves any candidate."""

    def __init__(self, metric: str, mean: float, std: float):
        if not np.isfinite(mean):
            raise ConfigError("mean", got=mean, expected="a finite number")
        if not (std >= 0 and np.isfinite(std)):
            raise ConfigError("std", got=std, expected="a finite number, 0 or more")
        self.metric, self.mean, self.std = metric, mean, std

    def fit(self, outcomes: Outcomes) -> Self:
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        shape = (len(queries), len(pool))
        return {self.metric: Estimate(np.full(shape, float(self.mean)), np.full(shape, float(self.std)))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"metric": self.metric, "mean": self.mean, "std": self.std}, {}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        return cls(**params)
