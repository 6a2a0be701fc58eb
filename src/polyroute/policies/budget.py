"""Keep spend near a limit by a price on cost, learned from what is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.kernels.dual import dual_step
from polyroute.policies.greedy import Greedy, take
from polyroute.protocols import Policy
from polyroute.types import Array, Candidate, Estimates, Objective, Query, Rng, Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """How `Budget` keeps mean spend near its limit."""

    limit: float  # USD per request, averaged over `window`
    window: int = 1000  # requests
    rate: float = 0.05  # step of the dual price per request, in utility for each limit spent too much
    fallback: str | None = None  # candidate id once the window is spent; None: refuse. See `within_budget`

    def __post_init__(self) -> None:
        if not (self.limit > 0 and math.isfinite(self.limit)):
            raise ConfigError("limit", got=self.limit, expected="USD per request, above 0")
        if self.window < 1:
            raise ConfigError("window", got=self.window, expected="a number of requests, 1 or more")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ConfigError("rate", got=self.rate, expected="a step above 0")


class Budget:
    """Charge cost at a price that rises while too much is spent and falls while too little is.

    Another policy then chooses by utility - price * cost, so spend settles near the limit and goes where it buys
    most. Tell it `spent(usd)` once for every request, also 0.0 for one refused. Needs the metric "cost" in USD.

    Two defences stand behind the price, for every `window` requests in turn. Once they have spent limit * window,
    `decide` takes the cheapest allowed until the next window. Given also as a constraint, `budget.within_budget`
    then allows the fallback alone, or nobody if there is none.
    Source: Balseiro, Lu and Mirrokni 2020 (arXiv:2011.10124), Euclidean case, spend in units of the limit.
    """

    def __init__(self, config: BudgetConfig, inner: Policy = Greedy()):
        self.config, self.inner = config, inner
        self.share_price = 0.0  # utility for one limit spent
        self.requests, self.window_usd = 0, 0.0  # requests finished in this window, and their USD

    @property
    def price(self) -> float:
        """Utility charged for 1 USD of estimated cost, beside what the objective charges already."""
        return self.share_price / self.config.limit

    @property
    def exhausted(self) -> bool:
        """Whether this window's requests have spent already what the whole window may."""
        return self.window_usd >= self.config.limit * self.config.window

    def spent(self, usd: float) -> None:
        """Take in what one request did cost, USD; 0 if it was refused or served from a cache."""
        if not (usd >= 0 and math.isfinite(usd)):
            raise ConfigError("usd", got=usd, expected="the cost of one request in USD, 0 or more")
        self.share_price = dual_step(self.share_price, usd / self.config.limit, 1.0, rate=self.config.rate)
        self.requests, self.window_usd = self.requests + 1, self.window_usd + usd
        if self.requests == self.config.window:
            self.requests, self.window_usd = 0, 0.0

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """The inner policy's selection at the current price. Weights are utilities without the price."""
        if "cost" not in estimates:
            raise UnknownNameError("metric", "cost", estimates)
        if self.exhausted:
            chosen = Greedy().decide(estimates, Objective({"cost": -1.0}), allowed, rng)
        elif self.share_price == 0.0:
            return self.inner.decide(estimates, objective, allowed, rng)
        else:
            charged = objective.weights.get("cost", 0.0) - self.price
            priced = Objective({**objective.weights, "cost": charged})
            chosen = self.inner.decide(estimates, priced, allowed, rng)
        return chosen._replace(weight=take(objective.utility(estimates), chosen.index))

    def within_budget(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        """A constraint, [n, m] bool: everyone until the window is spent, then the fallback alone."""
        if not self.exhausted:
            return np.ones((len(queries), len(pool)), dtype=bool)
        return np.array([[c.id == self.config.fallback for c in pool]], dtype=bool).repeat(len(queries), axis=0)
