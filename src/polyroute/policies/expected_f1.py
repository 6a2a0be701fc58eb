"""Choose a set: the likeliest candidates, as many as the expected F1 of the set asks for, or nobody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, EstimateError, ShapeError
from polyroute.types import Array, Estimates, Objective, Rng, Selection


@dataclass(frozen=True, slots=True)
class ExpectedF1:
    """The set of at most k candidates whose expected F1 is highest, read from a metric that is a probability.

    Each candidate is right for a query with its own probability, apart from the others; then the best set of a size is
    the likeliest, and sizes 1 to k are compared. Where no probability reaches `out_of_scope` nobody is chosen: index
    -1 throughout, which `decide` refuses, so ask the policy itself or give the pool a candidate for such queries.
    It weighs no costs: the objective is not used.
    Source: TCAndon-Router sets of up to three agents; the rule for the size is Lewis 1995's, on independent labels.
    """

    k: int = 3
    out_of_scope: float = 0.0  # a probability; 0: somebody is always chosen
    metric: str = "quality"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError("k", got=self.k, expected="1 or more")
        if not 0 <= self.out_of_scope <= 1:
            raise ConfigError("out_of_scope", got=self.out_of_scope, expected="a probability, 0 to 1")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, min(k, m)] without propensity, -1 where the set is smaller; weight is the probability."""
        chance = estimates[self.metric].mean
        if chance.shape != allowed.shape:
            raise ShapeError("allowed", got=allowed.shape, expected=chance.shape)
        bad = allowed & ~((chance >= 0) & (chance <= 1))
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise EstimateError(self.metric, row=int(i), column=int(j), got=float(chance[i, j]))
        chance = np.where(allowed, chance, 0.0)
        worth = expected_f1(chance, self.k)
        size = np.where(chance.max(axis=1, initial=0.0) >= self.out_of_scope, worth.argmax(axis=1) + 1, 0)
        size = np.minimum(size, allowed.sum(axis=1))
        index = np.argsort(-np.where(allowed, chance, -1.0), axis=1, kind="stable")[:, : self.k]
        within = np.arange(index.shape[1]) < size[:, None]
        weight = np.take_along_axis(chance, index, axis=1)
        return Selection(np.where(within, index, -1), np.where(within, weight, 0.0))


def expected_f1(chance: Array, k: int) -> Array:
    """[n, min(k, m)] expected F1 of the likeliest 1, 2, .. candidates. chance: [n, m] independent probabilities.

    F1 of a set of j with h hits is 2 h / (j + h + r), r the right ones outside; both counts are sums of independent
    draws, so their distributions are exact, by convolution: about k m^2 steps a row.
    """
    ranked = -np.sort(-np.asarray(chance, dtype=float), axis=1)
    n, m = ranked.shape
    found = np.zeros((n, min(k, m)))
    for j in range(1, min(k, m) + 1):
        hits, rest = count_odds(ranked[:, :j]), count_odds(ranked[:, j:])
        h, r = np.arange(j + 1)[:, None], np.arange(m - j + 1)[None]
        found[:, j - 1] = np.einsum("nh,hr,nr->n", hits, 2 * h / (j + h + r), rest)
    return found


def count_odds(chance: Array) -> Array:
    """[n, m + 1] P(0, 1, .., m of m independent events happen). chance: [n, m]."""
    n, m = chance.shape
    odds = np.zeros((n, m + 1))
    odds[:, 0] = 1.0
    for j in range(m):
        p = chance[:, j : j + 1]
        odds[:, 1 : j + 2] = odds[:, 1 : j + 2] * (1 - p) + odds[:, : j + 1] * p
        odds[:, 0] *= 1 - p[:, 0]
    return odds
