"""Percentile bootstrap over queries, whole groups at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.errors import ShapeError
from polyroute.types import Array, Rng


class Interval(NamedTuple):
    low: float
    high: float


def resample_counts(n: int, resamples: int, rng: Rng, groups: Array | None = None) -> Array:
    """How often each query is drawn in each resample: [resamples, n] float64.

    groups: [n] label; near-duplicates that share one are drawn together, since they are not independent.
    Use one result for all routers of a comparison: their differences are then paired.
    Source: the cluster bootstrap, Davison and Hinkley 1997, section 3.8.
    """
    if groups is not None and np.shape(groups) != (n,):
        raise ShapeError("groups", got=np.shape(groups), expected=(n,))
    member = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(member.max()) + 1 if n else 0
    counts = np.empty((resamples, num_groups))
    for b in range(resamples):
        counts[b] = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups) if n else 0
    return counts[:, member]


def weighted_means(values: Array, counts: Array) -> Array:
    """Mean of each series in each resample. values: [p, n]. counts: [b, n]. Returns [b, p]."""
    return (counts @ values.T) / counts.sum(axis=1, keepdims=True)


def interval(samples: Array, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap results [b]. Infinite ones count; those that do not exist (NaN) do not."""
    known = np.asarray(samples)[~np.isnan(samples)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(float(low), float(high))
