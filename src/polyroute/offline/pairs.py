"""Two models, weak and strong: how well does a predicted gain order the queries?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.types import Array, Outcomes


class PairSummary(NamedTuple):
    """NaN where the strong model is not better on average: there is no gap to recover."""

    apgr: float  # mean recovered share of the quality gap over all shares of strong calls; 0.5 for random calls
    cpt_50: float  # smallest share of strong calls that recovers 50 % of the gap
    cpt_80: float


def weak_and_strong(outcomes: Outcomes) -> tuple[int, int]:
    """Columns of the weak and the strong model of a pair: the dearer on average is the strong one."""
    cost = outcomes.values["cost"].mean(axis=0)
    strong = int(np.lexsort((-outcomes.values["quality"].mean(axis=0), -cost))[0])
    return 1 - strong, strong


def recovered(predicted_gain: Array, gain: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Share of strong calls and share of the quality gap recovered, as the strong model is called by predicted gain.

    predicted_gain, gain: [n] strong minus weak, as predicted and as observed. counts: [n] weight of each query.
    Queries with the same prediction are called in random order: a straight piece. Returns ([v], [v]), from (0, 0) to
    (1, 1); the second is NaN where the total gain is not positive.
    """
    weights = np.ones(len(gain)) if counts is None else np.asarray(counts, dtype=float)
    values, block = np.unique(-np.asarray(predicted_gain, dtype=float), return_inverse=True)
    called = np.cumsum(np.bincount(block, weights, minlength=len(values)))
    gained = np.cumsum(np.bincount(block, weights * gain, minlength=len(values)))
    share = np.concatenate(([0.0], called / called[-1]))
    if not gained[-1] > 0:
        return share, np.full(len(share), np.nan)
    return share, np.concatenate(([0.0], gained / gained[-1]))


def pair_summary(predicted_gain: Array, gain: Array, counts: Array | None = None) -> PairSummary:
    """APGR and CPT of a predicted gain; see `recovered` for the arguments.

    Source: RouteLLM, Ong et al. 2024 (arXiv:2406.18665); the area here is exact, not a sum over ten shares.
    """
    share, gap = recovered(predicted_gain, gain, counts)
    apgr = float(((gap[1:] + gap[:-1]) / 2 * np.diff(share)).sum())
    return PairSummary(apgr, first_reach(share, gap, 0.5), first_reach(share, gap, 0.8))


def first_reach(share: Array, gap: Array, level: float) -> float:
    """Smallest share at which a piecewise linear curve reaches a level; NaN where it never does."""
    above = np.flatnonzero(gap >= level)
    if not len(above):
        return float("nan")
    k = int(above[0])
    if k == 0:
        return float(share[0])
    step = (level - gap[k - 1]) / (gap[k] - gap[k - 1])
    return float(share[k - 1] + step * (share[k] - share[k - 1]))
