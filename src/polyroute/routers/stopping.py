"""Is another try worth its price: optimal stopping over sets of answers, learned by regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, ShapeError
from polyroute.routers.rows import check_shape
from polyroute.routers.verifier import Evidence, Scaled, logit, scaled
from polyroute.types import Array

GRID: tuple[float, ...] = (0.0, *np.logspace(-2.5, 1.5, 25).tolist())  # trade-offs a plan is worked out for
NEVER = -1e9


def subsets(k: int) -> list[tuple[int, ...]]:
    """Every set of 0..k-1, the empty one first, then by size."""
    return [chosen for size in range(k + 1) for chosen in combinations(range(k), size)]


class Stopping:
    """What is to be had by asking one candidate more, later tries and their prices included, for each trade-off.

    The candidates of a plan, its rungs, stand in order of price; after one was asked only dearer ones may follow, and
    any may be left out. Backwards from the full set, the value of going on to each rung is regressed on what is known
    by then (P(right) of the best answer and of its best rival, how many agree, the kind of question, what the router
    expects of each rung), as for American options: what was really earned on the way, not what was believed. Ridge,
    strong, since the best of several noisy values is taken.
    Source: Longstaff and Schwartz 2001 (least-squares Monte Carlo); that cascades can be solved so is our own reading.
    """

    def __init__(self, l2: float = 1000.0):
        if not l2 > 0:
            raise ConfigError("l2", got=l2, expected="a penalty above 0")
        self.l2 = l2
        self.weight_: Array | None = None  # [k + 1, k, 1 + p, g]; NaN where a rung cannot follow

    def fit(self, expected: Array, evidence: Evidence, right: Array, quality: Array, cost: Array, price: Array) -> Self:
        """Learn from n queries that all k rungs answered; columns are rungs, cheapest first.

        expected: [n, k] before the answer. right: [s, n, k] P(right) in each of `subsets(k)`, NaN where not tried,
        by a verifier that did not learn from the row. quality: [n, k]. cost: [n, k] what the answers cost and price:
        [n, k] what that was expected to be, both in units of the reference cost.
        """
        n, k = quality.shape
        sets = subsets(k)
        if np.shape(right) != (len(sets), n, k):
            raise ShapeError("right", got=np.shape(right), expected=(len(sets), n, k))
        place, grid = {chosen: s for s, chosen in enumerate(sets)}, np.array(GRID)
        worth = np.zeros((len(sets), n, len(grid)))  # earned from each set on, less what was paid from there on
        known = [knowledge(expected, evidence, right[s], member(chosen, n, k)) for s, chosen in enumerate(sets)]
        self.scaled_ = scaled(np.concatenate(known))
        x = [self.scaled_(rows) for rows in known]
        self.weight_ = np.full((k + 1, k, x[0].shape[1], len(grid)), np.nan)
        for size in range(k, -1, -1):
            here = [s for s, chosen in enumerate(sets) if len(chosen) == size]
            after = {
                (s, j): worth[place[(*sets[s], j)]] - grid * cost[:, j, None]
                for s in here for j in range(max(sets[s], default=-1) + 1, k)
            }  # fmt: skip
            later = {(s, j): value + grid * cost[:, j, None] for (s, j), value in after.items()}
            for j in range(k):
                if own := [s for s in here if (s, j) in after]:
                    rows, earned = np.concatenate([x[s] for s in own]), np.concatenate([later[s, j] for s in own])
                    self.weight_[size, j] = ridge(rows, earned, self.l2)
            for s in here:
                worth[s] = self._earned(s, size, x[s], right[s], quality, price, after)
        return self

    def _earned(
        self, s: int, size: int, x: Array, right: Array, quality: Array, price: Array, after: Mapping[Any, Array]
    ) -> Array:
        """[n, g] what following the plan from one set on really yields."""
        assert self.weight_ is not None
        n, grid = len(x), np.array(GRID)
        best = np.full((n, len(grid)), NEVER)
        earned = best.copy()
        if size:
            kept = np.where(np.isnan(right), -1.0, right)
            best = np.repeat(kept.max(axis=1)[:, None], len(grid), axis=1)
            earned = np.repeat(quality[np.arange(n), kept.argmax(axis=1)][:, None], len(grid), axis=1)
        for j in range(quality.shape[1]):
            if (s, j) in after:
                value = x @ self.weight_[size, j] - grid * price[:, j, None]
                earned, best = np.where(value > best, after[s, j], earned), np.maximum(best, value)
        return earned

    def read(self, expected: Array, evidence: Evidence, right: Array, tried: Array) -> Array:
        """What the plan goes by, [n, 1 + p], for one set tried [n, k] bool a row; the rest as in `fit`."""
        if self.weight_ is None:
            raise NotFittedError(self)
        return self.scaled_(knowledge(expected, evidence, right, tried))

    def worth(self, read: Array, tried: Array, trade_off: float) -> Array:
        """[n, k] expected quality at the end, less the price of tries after the next, of asking each rung next.

        read: from `read`. NEVER where a rung was passed already. trade_off: utility = quality - trade_off * cost /
        reference cost; between points of GRID, interpolated.
        """
        if self.weight_ is None:
            raise NotFittedError(self)
        n, k = tried.shape
        size, last = tried.sum(axis=1), np.where(tried.any(axis=1), k - tried[:, ::-1].argmax(axis=1), 0)
        found = np.full((n, k), NEVER)
        for s in set(size.tolist()):
            rows = np.flatnonzero(size == s)
            for j in range(k):
                may = rows[last[rows] <= j]
                if len(may):
                    found[may, j] = read[may] @ between(self.weight_[s, j], trade_off)
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.weight_ is None:
            raise NotFittedError(self)
        return {"l2": self.l2}, {"weight": self.weight_, "mean": self.scaled_.mean, "scale": self.scaled_.scale}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        plan = cls(**params)
        plan.weight_ = check_shape("weight", np.asarray(arrays["weight"], float), (None, None, None, len(GRID)))
        p = plan.weight_.shape[2] - 1
        plan.scaled_ = Scaled(*(check_shape(n, np.asarray(arrays[n], float), (p,)) for n in ("mean", "scale")))
        return plan


def member(chosen: Sequence[int], n: int, k: int) -> Array:
    """[n, k] bool, the same set in every row."""
    return np.repeat(np.isin(np.arange(k), chosen)[None], n, axis=0)


def ridge(x: Array, y: Array, l2: float) -> Array:
    """[p, g] for rows x [r, p], whose first column is 1 and free of penalty, and y [r, g]."""
    penalty = np.full(x.shape[1], l2)
    penalty[0] = 1e-6
    solved: Array = np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ y)
    return solved


def between(weight: Array, trade_off: float) -> Array:
    """[p] the weights [p, g] of a trade-off between two points of GRID."""
    low = int(np.clip(np.searchsorted(GRID, trade_off) - 1, 0, len(GRID) - 2))
    one, other = GRID[low], GRID[low + 1]
    share = float(np.clip((trade_off - one) / (other - one), 0.0, 1.0))
    mixed: Array = (1 - share) * weight[:, low] + share * weight[:, low + 1]
    return mixed


def knowledge(expected: Array, evidence: Evidence, right: Array, tried: Array) -> Array:
    """What is known before a further try, [n, p]: of the best answer, its best rival, the votes and the question."""
    n, k = tried.shape
    rows, any_yet = np.arange(n), tried.any(axis=1)
    chance = np.where(tried, right, -1.0)
    lead = chance.argmax(axis=1)
    best = np.where(any_yet, chance[rows, lead], 0.5)
    alike = evidence.agreement[rows, lead] * tried
    rival = np.where(tried & (alike < 0.5) & (np.arange(k) != lead[:, None]), chance, 0.0).max(axis=1, initial=0.0)
    agree = np.where(any_yet, alike.sum(axis=1), 0.0)
    against = np.where(any_yet, tried.sum(axis=1) - 1 - agree, 0.0)
    kind = evidence.features[rows, lead, : evidence.kinds] * any_yet[:, None]
    odds = np.where(any_yet, logit(best), 0.0)
    per_kind = [kind, best[:, None] * kind, odds[:, None] * kind, agree[:, None] * kind]
    plain = np.stack([odds, logit(rival), best, best**2, agree, against], axis=1)
    who = np.eye(k)[lead] * any_yet[:, None]
    return np.concatenate([logit(expected), plain, *per_kind, who], axis=1)
