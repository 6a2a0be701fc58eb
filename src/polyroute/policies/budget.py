"""Keep spend near a limit by a price on cost, learned from what is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.kernels.dual import dual_step
from polyroute.policies.greedy import Greedy, allowed_utility, take
from polyroute.policies.pace import Pace
from polyroute.protocols import Policy
from polyroute.types import Array, Candidate, Estimate, Estimates, Objective, Query, Rng, Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """How `Budget` keeps mean spend near its limit."""

    limit: float  # USD per request, averaged over `window`
    window: int = 1000  # requests
    rate: float = 0.05  # step of the dual price per request, in utility for each limit spent too much
    tolerance: float | None = None  # share of the limit by which any window may miss it; then `Pace` sets the price
    fallback: str | None = None  # candidate id once the window is spent; None: refuse. See `within_budget`

    def __post_init__(self) -> None:
        if not (self.limit > 0 and math.isfinite(self.limit)):
            raise ConfigError("limit", got=self.limit, expected="USD per request, above 0")
        if self.window < 1:
            raise ConfigError("window", got=self.window, expected="a number of requests, 1 or more")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ConfigError("rate", got=self.rate, expected="a step above 0")
        if self.tolerance is not None and not 0 < self.tolerance <= 1:
            raise ConfigError("tolerance", got=self.tolerance, expected="a share of the limit in (0, 1]")


CHEAPEST = Objective({"cost": -1.0})


class Budget:
    """Charge cost at a price that rises while too much is spent and falls while too little is.

    Another policy then chooses by utility - price * cost, so spend settles near the limit and goes where it buys
    most. Tell it `spent(usd)` once for every request, also 0.0 for one refused. Needs the metric "cost" in USD.

    Two defences stand behind the price, for every `window` requests in turn. Once they have spent limit * window,
    `decide` takes the cheapest allowed until the next window. Given also as a constraint, `budget.within_budget`
    then allows the fallback alone, or nobody if there is none.

    With a `tolerance` the price is that of policies/pace.py instead, which holds every window of requests, wherever it
    starts, and needs no rate; rows of a batch are priced one after the other, each as if the choices before it will
    cost what was estimated. `budget.pace.learn(utility, cost)` starts it from past requests.
    Source: Balseiro, Lu and Mirrokni 2020 (arXiv:2011.10124), Euclidean case, spend in units of the limit.
    """

    def __init__(self, config: BudgetConfig, inner: Policy = Greedy()):
        self.config, self.inner = config, inner
        self.share_price = 0.0  # utility for one limit spent
        self.requests, self.window_usd = 0, 0.0  # requests finished in this window, and their USD
        self.pace = None if config.tolerance is None else Pace(config.limit, config.window, config.tolerance)

    @property
    def price(self) -> float:
        """Utility charged for 1 USD of estimated cost, beside what the objective charges already."""
        return self.share_price / self.config.limit if self.pace is None else self.pace.price()

    @property
    def exhausted(self) -> bool:
        """Whether this window's requests have spent already what the whole window may."""
        return self.window_usd >= self.config.limit * self.config.window * (1.0 + (self.config.tolerance or 0.0))

    def spent(self, usd: float) -> None:
        """Take in what one request did cost, USD; 0 if it was refused or served from a cache."""
        if not (usd >= 0 and math.isfinite(usd)):
            raise ConfigError("usd", got=usd, expected="the cost of one request in USD, 0 or more")
        if self.pace is None:
            self.share_price = dual_step(self.share_price, usd / self.config.limit, 1.0, rate=self.config.rate)
        else:
            self.pace.spent(usd)
        self.requests, self.window_usd = self.requests + 1, self.window_usd + usd
        if self.requests == self.config.window:
            self.requests, self.window_usd = 0, 0.0

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """The inner policy's selection at the current price. Weights are utilities without the price."""
        if "cost" not in estimates:
            raise UnknownNameError("metric", "cost", estimates)
        if self.exhausted:
            chosen = Greedy().decide(estimates, CHEAPEST, allowed, rng)
        elif self.pace is not None:
            chosen = self._paced(self.pace, estimates, objective, allowed, rng)
        elif self.share_price == 0.0:
            return self.inner.decide(estimates, objective, allowed, rng)
        else:
            chosen = self.inner.decide(estimates, charged(objective, self.price), allowed, rng)
        return chosen._replace(weight=take(objective.utility(estimates), chosen.index))

    def _paced(self, pace: Pace, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """One row after the other, each at the price and within the room that the rows before it leave."""
        utility, cost = allowed_utility(estimates, objective, allowed), estimates["cost"].mean
        rows, ahead = [], 0.0
        for i in range(len(utility)):
            row = {name: Estimate(mean[i : i + 1], None if std is None else std[i : i + 1])
                   for name, (mean, std) in estimates.items()}  # fmt: skip
            pace.saw(utility[i].tolist(), cost[i].tolist())
            fits = allowed[i : i + 1] & (cost[i : i + 1] <= pace.room(ahead))
            if fits.any():
                chosen = self.inner.decide(row, charged(objective, pace.price(ahead)), fits, rng)
            else:
                chosen = Greedy().decide(row, CHEAPEST, allowed[i : i + 1], rng)
            ahead += float(cost[i, chosen.index[0, 0]]) / pace.limit - 1.0
            rows.append(chosen)
        return stacked(rows)

    def within_budget(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        """A constraint, [n, m] bool: everyone until the window is spent, then the fallback alone."""
        if not self.exhausted:
            return np.ones((len(queries), len(pool)), dtype=bool)
        return np.array([[c.id == self.config.fallback for c in pool]], dtype=bool).repeat(len(queries), axis=0)


def charged(objective: Objective, price: float) -> Objective:
    """The objective with a price, utility per USD, on top of what it charges for cost already."""
    if price == 0.0:
        return objective
    return Objective({**objective.weights, "cost": objective.weights.get("cost", 0.0) - price})


def stacked(rows: Sequence[Selection]) -> Selection:
    """Selections of one row each as one. Rows may differ in how many they chose: the places left get index -1."""
    num_rows, k = len(rows), max((row.index.shape[1] for row in rows), default=1)
    index, weight, propensity = np.full((num_rows, k), -1), np.zeros((num_rows, k)), np.ones((num_rows, k))
    for i, row in enumerate(rows):
        width = row.index.shape[1]
        index[i, :width], weight[i, :width] = row.index[0], row.weight[0]
        if row.propensity is not None:
            propensity[i, :width] = row.propensity[0]
    sure = all(row.propensity is None for row in rows)
    return Selection(index, weight, None if sure else propensity)
