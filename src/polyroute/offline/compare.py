"""Routers and baselines on one table, with bootstrap intervals and paired differences.

Letters as in frontier.py: n queries, m candidates, p operating points, b resamples, g costs of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import OutcomesError, UnknownNameError
from polyroute.offline.bootstrap import Interval, interval, resample_counts, weighted_means
from polyroute.offline.frontier import Curve, Scale, Summary, hull_of, scale_of, summarise
from polyroute.offline.pairs import PairSummary, pair_summary
from polyroute.offline.split import groups_of
from polyroute.types import Array, Outcomes, Rng


class Compared(NamedTuple):
    """One curve measured on one table."""

    name: str
    summary: Summary
    intervals: Mapping[str, Interval]  # number of the summary -> its 95 % interval
    difference: Mapping[str, Difference]  # name of another curve -> AIQ of this one minus the other's
    cost: Array  # [p] mean cost of the operating points, USD
    quality: Array  # [p] mean quality
    samples: Array  # [1 + b] AIQ: as it is, then of each resample


class Difference(NamedTuple):
    """A paired difference: both curves on the same resamples."""

    value: float
    low: float
    high: float


def resamples_of(outcomes: Outcomes, rng: Rng, resamples: int = 500) -> Array:
    """[1 + b, n] how often each query counts: once each in row 0, as drawn by group in the others.

    Raises: OutcomesError where the table is not complete, since a choice without an outcome cannot be judged.
    """
    whole = int(outcomes.observed.all(axis=1).sum())
    if not len(outcomes) or whole < len(outcomes):
        raise OutcomesError(
            f"expected queries that every model answered, got {len(outcomes)} queries of which {whole} are complete. "
            f"Take the complete ones first."
        )
    drawn = resample_counts(len(outcomes), resamples, rng, groups_of(outcomes))
    return np.concatenate([np.ones((1, len(outcomes))), drawn])


def compare(curves: Sequence[Curve], outcomes: Outcomes, counts: Array, against: Sequence[str] = ()) -> list[Compared]:
    """Measure each curve on a complete table, all on the same resamples.

    counts: from `resamples_of`. against: names of curves to give paired AIQ differences to.
    The range of costs and the best single model's quality belong to the queries, so each resample has its own.
    """
    for name in against:
        if name not in [curve.name for curve in curves]:
            raise UnknownNameError("curve", name, [curve.name for curve in curves])
    scales = scales_of(outcomes, counts)
    points = [(weighted_means(curve.cost, counts), weighted_means(curve.quality, counts)) for curve in curves]
    found = {
        curve.name: np.array([summarise(q, c, scale) for c, q, scale in zip(cost, quality, scales, strict=True)])
        for curve, (cost, quality) in zip(curves, points, strict=True)
    }  # [1 + b, numbers of a summary]
    return [
        Compared(
            curve.name,
            Summary(*found[curve.name][0].tolist()),
            {name: interval(found[curve.name][1:, k]) for k, name in enumerate(Summary._fields)},
            {name: difference(found[curve.name][:, 0], found[name][:, 0]) for name in against if name != curve.name},
            cost[0],
            quality[0],
            found[curve.name][:, 0],
        )
        for curve, (cost, quality) in zip(curves, points, strict=True)
    ]


def difference(one: Array, other: Array) -> Difference:
    """one, other: [1 + b], the number itself and its resamples."""
    return Difference(float(one[0] - other[0]), *interval((one - other)[1:]))


def scales_of(outcomes: Outcomes, counts: Array) -> list[Scale]:
    """The single models' range in each resample."""
    quality, cost = (weighted_means(outcomes.values[name].T, counts) for name in ("quality", "cost"))
    return [scale_of(q, c) for q, c in zip(quality, cost, strict=True)]


def hull_band(curve: Curve, outcomes: Outcomes, counts: Array, grid: Array) -> tuple[Array, Array]:
    """Lower and upper 95 % limit of a curve's hull quality at given mean costs. grid: [g] USD. Returns ([g], [g])."""
    cost, quality = weighted_means(curve.cost, counts[1:]), weighted_means(curve.quality, counts[1:])
    heights = []
    for c, q, scale in zip(cost, quality, scales_of(outcomes, counts[1:]), strict=True):
        hull = hull_of(np.append(c, scale.low), np.append(q, scale.low_quality))
        heights.append(np.interp(grid, hull.cost, hull.quality))
    low, high = np.quantile(np.array(heights), [0.025, 0.975], axis=0)
    return low, high


def compare_pair(predicted_gain: Array, gain: Array, counts: Array) -> tuple[PairSummary, dict[str, Interval]]:
    """APGR and CPT with intervals. predicted_gain, gain: [n] strong minus weak. counts: from `resamples_of`."""
    found = np.array([pair_summary(predicted_gain, gain, row) for row in counts])
    return PairSummary(*found[0].tolist()), {name: interval(found[1:, k]) for k, name in enumerate(PairSummary._fields)}
