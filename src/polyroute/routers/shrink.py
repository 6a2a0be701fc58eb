"""Shrinkage: a mean of a few observations, drawn towards what was believed before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.routers.rows import Columns, columns
from polyroute.types import Array, Candidate, Estimate

PRIOR_VARIANCE = {"quality": 0.25}  # the most a number in 0..1 can vary; other metrics: the square of their mean


def spread(total: Array, square: Array, count: Array, metric: str) -> Array:
    """Variance of one outcome of each candidate, [m], never 0 for want of data.

    total, square, count: [m] sums of the values seen, of their squares, and how many. Each candidate's variance is
    drawn by one pseudo-observation to the pooled variance, and that by one more to a variance assumed before any.
    """
    n = max(float(count.sum()), 1.0)
    pooled_mean = total.sum() / n
    before = PRIOR_VARIANCE.get(metric, pooled_mean**2)
    pooled = (max(square.sum() - n * pooled_mean**2, 0.0) + before) / (n + 1)
    inside = np.maximum(square - total**2 / np.maximum(count, 1), 0.0)
    return (inside + pooled) / (count + 1)


def shrunk(
    total: Array, square: Array, count: Array, centre: Array, variance: Array, kappa: float, doubt: Array | None = None
) -> Estimate:
    """Mean of `count` observations drawn to `centre` as if kappa more had been seen there; all [n, m] or broadcast.

    total, square: sums of the values seen and of their squares. variance: of one outcome. doubt: std of `centre`
    itself; None: sqrt(variance / kappa), for which kappa is the right weight. With nothing seen the estimate is
    `centre` and its doubt. The std is the doubt about the mean, not the scatter of single outcomes.
    """
    weight = count + kappa
    sure = np.maximum(weight, 1e-12)
    mean = np.where(weight > 0, (total + kappa * centre) / sure, centre)
    scatter = (np.maximum(square - 2 * mean * total + count * mean**2, 0.0) + variance) / (count + 1)
    before, alone = (kappa * variance, variance) if doubt is None else ((kappa * doubt) ** 2, doubt**2)
    std = np.sqrt(np.where(weight > 0, (count * scatter + before) / sure**2, alone))
    return Estimate(mean, std)


class Overall(NamedTuple):
    """What is known of a pool's candidates before any query."""

    at: Columns
    mean: Array  # [m] of all outcomes seen; 0 for a candidate never seen
    variance: Array  # [m] of one outcome


def overall(
    sums: Array, column: Mapping[str, int], pool: Sequence[Candidate], metric: str, *, prior: object = None
) -> Overall:
    """Means and variances of a pool. sums: [3, columns] of the values, of their squares, and how many were seen.

    Raises: UnknownCandidateError for a candidate without an outcome, unless there is a prior to serve it.
    """
    total, square, count = sums
    at = columns({name: j for name, j in column.items() if count[j]}, pool, prior=prior)
    if not count.any():
        return Overall(at, np.zeros(len(pool)), np.full(len(pool), PRIOR_VARIANCE.get(metric, 1.0)))
    mean, variance = total / np.maximum(count, 1), spread(total, square, count, metric)
    common = float(variance[count > 0].mean())
    if at.unseen is None:
        return Overall(at, mean[at.index], variance[at.index])
    return Overall(at, np.where(at.unseen, 0.0, mean[at.index]), np.where(at.unseen, common, variance[at.index]))


def pick(sums: Array, at: Columns) -> tuple[Array, Array, Array]:
    """The pool's columns of sums [q, 3, columns], as three [q, m]; zeros for candidates never seen."""
    if not sums.shape[2]:
        sums = np.zeros((len(sums), 3, 1))
    taken = sums[:, :, at.index]
    if at.unseen is not None:
        taken[:, :, at.unseen] = 0.0
    return taken[:, 0], taken[:, 1], taken[:, 2]
