"""Answer in time: among the allowed, those that fit the deadline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from polyroute.errors import ConfigError, EstimateError, ShapeError, UnknownNameError
from polyroute.policies.greedy import Greedy
from polyroute.protocols import Policy
from polyroute.types import Array, Estimates, Objective, Rng, Selection


@dataclass(frozen=True, slots=True)
class Deadline:
    """Let another policy choose among the candidates expected in time; if there is none, take the fastest.

    In time means: latency mean + z * std <= deadline_s (a std of None counts as 0). For a normal error z = 1 is
    in time 84 times in 100, z = 2 97 times. Needs the metric "latency" in seconds, weighed or not.
    """

    deadline_s: float
    z: float = 1.0
    inner: Policy = field(default_factory=Greedy)

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ConfigError("deadline_s", got=self.deadline_s, expected="seconds, above 0")
        if not 0 <= self.z < np.inf:
            raise ConfigError("z", got=self.z, expected="standard deviations of caution, 0 or more")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """The inner policy's selection, with its propensity: who is in time is not left to chance."""
        return self.inner.decide(estimates, objective, self.in_time(estimates, allowed), rng)

    def in_time(self, estimates: Estimates, allowed: Array) -> Array:
        """[n, m] bool: the allowed expected in time, or else the fastest allowed alone.

        Raises: UnknownNameError without a latency estimate; EstimateError where an allowed one is NaN; ShapeError where
        estimates and allowed do not fit.
        """
        if "latency" not in estimates:
            raise UnknownNameError("metric", "latency", estimates)
        mean, std = estimates["latency"]
        if mean.shape != allowed.shape:
            raise ShapeError("allowed", got=allowed.shape, expected=mean.shape)
        latency = mean if std is None else mean + self.z * std
        unknown = allowed & np.isnan(latency)
        if unknown.any():
            i, j = np.argwhere(unknown)[0]
            metric = "latency" if np.isnan(mean[i, j]) else "latency.std"
            raise EstimateError(metric, row=int(i), column=int(j), got=float("nan"))
        fits = allowed & (latency <= self.deadline_s)
        late = ~fits.any(axis=1)
        if late.any():
            fastest = np.where(allowed, latency, np.inf).argmin(axis=1)[late]
            fits[late, fastest] = allowed[late, fastest]
        return fits
