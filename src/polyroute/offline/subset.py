"""Which candidates to keep: a subset under a budget, and the best of it for each category of queries."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array

EXACT_UP_TO = 15  # candidates; 2^15 subsets are weighed in well under a second


class Subset(NamedTuple):
    """A choice of candidates to keep and of one of them for each category."""

    kept: tuple[int, ...]  # columns, ascending
    mapping: Array  # [c] column of each category
    value: float  # weighted mean score


def best_subset(scores: Array, weights: Array, sizes: Array, budget: float, *, exact: bool | None = None) -> Subset:
    """Keep candidates within `budget` so that the best kept one of each category scores most.

    scores: [c, m] mean score of each candidate in each category. weights: [c] share of queries. sizes: [m] in the
    unit of `budget`; a candidate counts once, however many categories it serves. exact: try all subsets (the
    default up to 15 candidates), else add by gain per size and improve by swaps.
    Raises: ConfigError where not even the smallest candidate fits. Source: arXiv:2412.01868 (the integer programme).
    """
    c, m = scores.shape
    if np.shape(weights) != (c,) or np.shape(sizes) != (m,):
        got = (*np.shape(weights), *np.shape(sizes))
        raise ShapeError("weights and sizes, one behind the other", got=got, expected=(c, m))
    if not (sizes <= budget).any():
        raise ConfigError("budget", got=budget, expected=f"room for at least one candidate, {sizes.min()} or more")
    search = every_subset if (m <= EXACT_UP_TO if exact is None else exact) else greedy_subset
    kept = search(scores, weights, sizes, budget)
    return Subset(kept, mapped(scores, kept), worth(scores, weights, kept))


def worth(scores: Array, weights: Array, kept: tuple[int, ...]) -> float:
    """Weighted mean of the best kept score of each category."""
    return float(weights @ scores[:, kept].max(axis=1)) if kept else -np.inf


def mapped(scores: Array, kept: tuple[int, ...]) -> Array:
    """[c] the kept column that scores most in each category."""
    return np.array(kept)[scores[:, kept].argmax(axis=1)]


def every_subset(scores: Array, weights: Array, sizes: Array, budget: float) -> tuple[int, ...]:
    """The best of all subsets; among equals the smaller one."""
    m = scores.shape[1]
    found: list[tuple[float, float, tuple[int, ...]]] = []
    for k in range(1, m + 1):
        for kept in combinations(range(m), k):
            size = float(sizes[list(kept)].sum())
            if size <= budget:
                found.append((worth(scores, weights, kept), -size, kept))
    return max(found)[2]


def greedy_subset(scores: Array, weights: Array, sizes: Array, budget: float) -> tuple[int, ...]:
    """Start from the best single that fits; add by gain per size; swap while a swap gains."""
    fits = [j for j in range(scores.shape[1]) if sizes[j] <= budget]
    kept: tuple[int, ...] = (max(fits, key=lambda j: worth(scores, weights, (j,))),)
    while True:
        now = worth(scores, weights, kept)
        spare = budget - sizes[list(kept)].sum()
        moves = [tuple(sorted((*kept, j))) for j in fits if j not in kept and sizes[j] <= spare]
        swaps = [
            tuple(sorted((*(k for k in kept if k != out), j)))
            for out in kept for j in fits if j not in kept and sizes[j] <= spare + sizes[out]
        ]  # fmt: skip
        gains = [((worth(scores, weights, x) - now) / sizes[list(set(x) - set(kept))].sum(), x) for x in moves]
        gains += [(worth(scores, weights, x) - now, x) for x in swaps] if not any(g > 1e-12 for g, _ in gains) else []
        if not gains or max(gains)[0] <= 1e-12:
            return kept
        kept = max(gains)[1]
