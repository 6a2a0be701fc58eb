"""The price at which the requests to come spend what is left, worked out again at every request."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array

REFRESH = 25  # requests between two sorts of the remembered steps
WIDTHS = (0.25, 0.5, 0.75)  # shares of the limit over which the slope of the price is taken: the first that shows one
EDGE = 0.7  # share of the tolerance by which a window may fall short before that counts once more


class Pace:
    """Keeps the spend of any `window` requests in a row within `tolerance` of its limit, as far as choices allow.

    It remembers the efficient choices of the last `memory` requests, so it knows what each price would make them
    spend. The price asked for is the one that spends the limit, moved in proportion to what was overspent so far, by as
    much as corrects it over the next `window * tolerance` requests. Unlike a dual step it starts at the right price,
    has no rate to tune to the unit of utility, and its deviation settles at zero, not where the price happens to be.

    Behind the price stands `room`: what an answer may cost so that no window ends above its limit by more than the
    tolerance. Keeping to it is a guarantee where estimated costs are right and the cheapest choice fits. Where answers
    are dear it also keeps many of them out, so that spend sinks below the limit: what a window is short by more than
    most of its tolerance is therefore taken off what the price answers to, and it falls. That is no guarantee: no
    price makes spend what is not worth anything. Unspent money is forgotten beyond twice the tolerance, debt that no
    choice could prevent beyond once.
    Source: solving again with the budget left, Jasin and Kumar 2012 (doi:10.1287/moor.1120.0542); dual prices of
    requests, Balseiro, Lu and Mirrokni 2020 (arXiv:2011.10124).
    """

    def __init__(self, limit: float, window: int = 1000, tolerance: float = 0.01, memory: int = 200):
        if not (limit > 0 and math.isfinite(limit)):
            raise ConfigError("limit", got=limit, expected="USD per request, above 0")
        if window < 1:
            raise ConfigError("window", got=window, expected="a number of requests, 1 or more")
        if not 0 < tolerance <= 1:
            raise ConfigError("tolerance", got=tolerance, expected="a share of the limit in (0, 1]")
        if memory < 1:
            raise ConfigError("memory", got=memory, expected="a number of requests, 1 or more")
        self.limit, self.window, self.memory = limit, window, memory
        self.band = max(window * tolerance, 1.0)  # requests: the tolerance of a window, in limits
        self.surplus = 0.0  # spent beyond the limit so far, in limits, without what is forgotten
        self.total, self.count = 0.0, 0  # the same with everything, and requests finished
        self._lows: deque[tuple[int, float]] = deque([(0, 0.0)])  # (count, total), rising: least total in the window
        self._highs: deque[tuple[int, float]] = deque([(0, 0.0)])  # the same falling: greatest total in the window
        self._rows: deque[tuple[float, list[tuple[float, float]]]] = deque(maxlen=memory)  # cheapest cost, steps
        self._level, self._slope = 0.0, 0.0  # price that spends the limit; rise of it for each limit overspent
        self._unsorted = 0

    def learn(self, utility: Array, cost: Array) -> None:
        """Start from past or expected requests. utility, cost: [n, m] as the policy would weigh them, cost in USD."""
        if utility.shape != cost.shape:
            raise ShapeError("cost", got=cost.shape, expected=utility.shape)
        for row, usd in zip(utility[-self.memory :].tolist(), cost[-self.memory :].tolist(), strict=True):
            self._rows.append(row_steps(row, usd))
        self._sort()

    def saw(self, utility: Sequence[float], cost: Sequence[float]) -> None:
        """Remember one request's candidates [m]: their utility without the price, -inf where ruled out, and USD."""
        self._rows.append(row_steps(utility, cost))
        self._unsorted += 1
        if self._unsorted >= REFRESH or len(self._rows) <= REFRESH:
            self._sort()

    def _sort(self) -> None:
        self._unsorted = 0
        steps = np.array([step for _, steps in self._rows for step in steps]).reshape(-1, 2)
        price, more = steps[np.argsort(-steps[:, 0], kind="stable")].T
        spend = (sum(cheapest for cheapest, _ in self._rows) + np.cumsum(more)) / max(len(self._rows), 1)
        price = np.append(price, 0.0)

        def priced(share: float) -> float:
            return float(price[spend.searchsorted(share * self.limit, side="right")])

        self._level, self._slope = priced(1.0), 0.0
        for width in WIDTHS:
            self._slope = (priced(1.0 - width) - priced(1.0 + width)) / (2 * width * self.band)
            if self._slope > 0:
                break

    def price(self, ahead: float = 0.0) -> float:
        """Utility to charge for 1 USD now. ahead: limits expected beyond `surplus` from choices not yet paid for."""
        oldest = self.count + 1 - self.window
        high = next(total for count, total in self._highs if count >= oldest)
        short = max(high - self.total - ahead - EDGE * self.band, 0.0)
        return max(0.0, self._level + self._slope * self._bounded(self.surplus + ahead - short))

    def room(self, ahead: float = 0.0) -> float:
        """USD that the next answer may cost; below 0: only the cheapest choice is left."""
        oldest = self.count + 1 - self.window
        low = next(total for count, total in self._lows if count >= oldest)
        of_window = low + self.band - self.total
        return self.limit * (1.0 + min(of_window, self.band / 2 - self.surplus) - ahead)

    def spent(self, usd: float) -> None:
        """Take in what one request did cost, USD."""
        excess = usd / self.limit - 1.0
        self.surplus = self._bounded(self.surplus + excess)
        self.total, self.count = self.total + excess, self.count + 1
        for ends, sign in ((self._lows, 1.0), (self._highs, -1.0)):
            while ends and sign * (ends[-1][1] - self.total) >= 0:
                ends.pop()
            ends.append((self.count, self.total))
            while ends[0][0] < self.count + 1 - self.window:
                ends.popleft()

    def _bounded(self, surplus: float) -> float:
        return min(max(surplus, -2 * self.band), self.band)


def row_steps(utility: Sequence[float], cost: Sequence[float]) -> tuple[float, list[tuple[float, float]]]:
    """A row's cheapest cost, and its efficient steps as (utility per USD, USD), steepest first.

    One row of `kernels.dual.efficient_steps` in plain numbers: for a dozen candidates twenty times as quick.
    """
    points = sorted((c, -u) for u, c in zip(utility, cost, strict=True) if u > -math.inf)
    kept: list[tuple[float, float]] = []  # (cost, utility), both rising, concave
    for c, negative in points:
        u = -negative
        if kept and (u <= kept[-1][1] or c <= kept[-1][0]):
            continue
        while len(kept) > 1:
            (c0, u0), (c1, u1) = kept[-2], kept[-1]
            if (u1 - u0) * (c - c0) > (u - u0) * (c1 - c0):
                break
            kept.pop()
        kept.append((c, u))
    steps = [((u1 - u0) / (c1 - c0), c1 - c0) for (c0, u0), (c1, u1) in pairwise(kept)]
    return (kept[0][0] if kept else 0.0), steps
