"""The cheapest that will do: cost decides among those whose shortfall is small enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, EstimateError, UnknownNameError
from polyroute.policies.greedy import allowed_utility, best_only, take
from polyroute.types import Array, Estimates, Objective, Rng, Selection


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The cheapest allowed candidate whose shortfall is at most tau; where there is none, the smallest shortfall.

    Needs the metrics "shortfall" (0 or more, see `routers/match.py`) and "cost" (USD). Ties go by cost, then by
    "capability" where it is estimated (more first), then to the first column.
    """

    tau: float = 0.05  # in the unit of the shortfall: 0 demands everything, infinity takes the cheapest

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ConfigError("tau", got=self.tau, expected="a shortfall, 0 or more")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] without propensity. Weight is the expected utility. rng is not used."""
        utility = allowed_utility(estimates, objective, allowed)
        index = self._order(estimates, allowed)[:, :1]
        return Selection(index, take(utility, index))

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice): 1 for the chosen."""
        allowed_utility(estimates, objective, allowed)
        rank = self._order(estimates, allowed).argsort(axis=1)
        return best_only(-rank.astype(float))

    def _order(self, estimates: Estimates, allowed: Array) -> Array:
        """Columns from the most to the least wanted, [n, m]."""
        for name in ("shortfall", "cost"):
            if name not in estimates:
                raise UnknownNameError("metric", name, estimates)
            if (wrong := allowed & np.isnan(estimates[name].mean)).any():
                i, j = np.argwhere(wrong)[0]
                raise EstimateError(name, row=int(i), column=int(j), got=float("nan"))
        short, cost = estimates["shortfall"].mean, estimates["cost"].mean
        surplus = estimates["capability"].mean if "capability" in estimates else np.zeros_like(cost)
        over = np.where(short <= self.tau, 0.0, short)  # within tau only cost counts
        return np.lexsort((-surplus, cost, over, ~allowed), axis=1)
