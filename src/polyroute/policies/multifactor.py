"""Several metrics on one scale: hard ceilings, then a weighted sum of where each candidate stands among the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.policies.greedy import Greedy
from polyroute.types import Array, Estimate, Estimates, Objective, Rng, Selection

SCORE = "score"


@dataclass(frozen=True, slots=True)
class MultiFactor:
    """Scale each metric of the objective to 0..1 over the allowed candidates, and take the largest weighted sum.

    Weights are the objective's; a negative one says that less is better. Where all candidates are equal the metric
    counts 0.5 for each, and an estimate that is not a number counts 0. ceilings: metric -> largest mean that passes;
    where that leaves nobody, the ceilings of that query are dropped. Scaling makes metrics of any unit comparable at
    the price that the result depends on who else is in the pool; Greedy with an objective in units of utility does not.
    Source: multi-factor selection of vLLM Semantic Router.
    """

    ceilings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in self.ceilings.items():
            if not most > 0:
                raise ConfigError(f"ceilings.{name}", got=most, expected="a number above 0, in the metric's unit")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        for name in (*self.ceilings, *objective.weights):
            if name not in estimates:
                raise UnknownNameError("metric", name, estimates)
        under = allowed.copy()
        for name, most in self.ceilings.items():
            under &= ~(estimates[name].mean > most)
        under = np.where(under.any(axis=1, keepdims=True), under, allowed)
        total = np.zeros(allowed.shape)
        for name, weight in objective.weights.items():
            share = standing(estimates[name].mean, under)
            total += abs(weight) * np.where(np.isnan(share), 0.0, share if weight >= 0 else 1 - share)
        return Greedy().decide({SCORE: Estimate(total)}, Objective({SCORE: 1.0}), under, rng)


def standing(values: Array, among: Array) -> Array:
    """[n, m] where each value stands between smallest (0) and largest (1) of its row's `among`; 0.5 if equal."""
    known = among & np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(known, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        share = np.where(high > low, (values - low) / np.where(high > low, high - low, 1.0), 0.5)
    return np.where(known, share, np.nan)
