"""Quality against cost: operating points of a router, their hull, and the numbers read off it.

Letters: n queries, m candidates, p operating points (one per trade-off), b bootstrap resamples, v vertices of a hull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.types import Array, Outcomes

ROUNDING = 1e-12  # two means of the same numbers may differ by this much
TRADE_OFFS: tuple[float, ...] = (0.0, *np.logspace(-3, 3, 60).tolist(), math.inf)


class Curve(NamedTuple):
    """What a way of routing yields at each of its settings, query by query, so that queries can be resampled."""

    name: str
    quality: Array  # [p, n], 0..1; the first point is the one that asks for quality alone
    cost: Array  # [p, n], USD


class Hull(NamedTuple):
    """Non-decreasing concave upper hull: what mixing the operating points at random can reach."""

    cost: Array  # [v] ascending, USD
    quality: Array  # [v] ascending


class Scale(NamedTuple):
    """What a table's single models yield on average: the range and the mark a router is measured by."""

    low: float  # mean cost of the cheapest model, USD
    low_quality: float
    high: float  # mean cost of the dearest model, USD
    best_quality: float
    best_cost: float  # mean cost of the best single model, USD


class Summary(NamedTuple):
    """The numbers of one frontier. Infinite: never reached. NaN: below the cheapest point; no costs to compare with."""

    aiq: float  # average hull quality over the cost range of the single models
    quality_25: float  # hull quality at 25 % of the dearest model's mean cost
    quality_50: float
    quality_75: float
    cost_95: float  # cost to reach 95 % of the best single model's quality, relative to that model's cost
    cost_100: float


def choose(quality: Array, cost: Array, trade_offs: Sequence[float], reference_cost: float) -> Array:
    """Column chosen for each query at each trade-off: argmax of quality - trade_off * cost / reference_cost.

    quality: [n, m] expected, 0..1. cost: [n, m] expected, USD. reference_cost: USD, above 0; see `reference_cost`.
    Returns [p, n] int. At trade-off infinity the candidate of lowest expected cost is taken; ties go to the first.
    """
    rows = [cost.argmin(axis=1) if math.isinf(t) else (quality - t * cost / reference_cost).argmax(axis=1)
            for t in trade_offs]  # fmt: skip
    return np.stack(rows) if rows else np.empty((0, len(quality)), dtype=np.int64)


def reference_cost(outcomes: Outcomes) -> float:
    """Mean observed cost of the dearest model, USD: the unit in which a trade-off is stated. 1 where all are free."""
    known = outcomes.observed & np.isfinite(outcomes.values["cost"])
    means = np.where(known, outcomes.values["cost"], 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return float(means.max(initial=0.0)) or 1.0


def realised(name: str, choices: Array, outcomes: Outcomes) -> Curve:
    """What the choices would have yielded. choices: [p, n] column of each query; the table must be complete."""
    rows = np.arange(len(outcomes))
    return Curve(name, outcomes.values["quality"][rows, choices], outcomes.values["cost"][rows, choices])


def scale_of(quality: Array, cost: Array) -> Scale:
    """quality, cost: [m] means of the single models. Ties go to the better, then to the cheaper model."""
    low = np.lexsort((-quality, cost))[0]
    best = np.lexsort((cost, -quality))[0]
    return Scale(float(cost[low]), float(quality[low]), float(cost.max()), float(quality[best]), float(cost[best]))


def hull_of(cost: Array, quality: Array) -> Hull:
    """The hull of points [p]: starts at the lowest cost, ends at the highest quality, concave between."""
    kept: list[tuple[float, float]] = []
    for k in np.lexsort((-quality, cost)):
        x, y = float(cost[k]), float(quality[k])
        if kept and y <= kept[-1][1]:  # dearer and no better
            continue
        while len(kept) > 1 and turns_left(kept[-2], kept[-1], (x, y)):
            kept.pop()
        kept.append((x, y))
    points = np.array(kept).reshape(-1, 2)
    return Hull(points[:, 0], points[:, 1])


def turns_left(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def quality_at(hull: Hull, cost: float) -> float:
    """Hull quality at a mean cost; flat beyond the last vertex, NaN below the first."""
    if not len(hull.cost) or cost < hull.cost[0] * (1 - ROUNDING):
        return math.nan
    return float(np.interp(cost, hull.cost, hull.quality))


def cost_at(hull: Hull, quality: float) -> float:
    """Lowest mean cost at which the hull reaches a quality; infinite where it never does."""
    if not len(hull.cost) or quality > hull.quality[-1] + ROUNDING:
        return math.inf
    return float(np.interp(quality, hull.quality, hull.cost))


def area(hull: Hull, low: float, high: float) -> float:
    """Mean hull quality over costs from low to high, low < high and low not below the first vertex."""
    inside = hull.cost[(hull.cost > low) & (hull.cost < high)]
    x = np.concatenate(([low], inside, [high]))
    y = np.interp(x, hull.cost, hull.quality)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (high - low))


def relative(cost: float, reference: float) -> float:
    """cost / reference; NaN where the reference is free."""
    return cost / reference if reference > 0 else math.nan


def one_price(scale: Scale) -> bool:
    """Whether all models cost the same, so that there is no range of costs to average over."""
    return scale.high - scale.low <= 1e-9 * scale.high


def summarise(quality: Array, cost: Array, scale: Scale) -> Summary:
    """The numbers of one frontier from its points' means [p], first point quality alone.

    Every router may fall back to the cheapest model, so its point joins the hull. Where all models have one price
    there is no range of costs: aiq is then the quality of the first point and the rest is NaN.
    Source: AIQ after RouterBench, Hu et al. 2024 (arXiv:2403.12031); the hull here is flat beyond its best point.
    """
    if one_price(scale):
        return Summary(float(quality[0]), *(math.nan,) * 5)
    hull = hull_of(np.append(cost, scale.low), np.append(quality, scale.low_quality))
    return Summary(
        area(hull, scale.low, scale.high),
        *(quality_at(hull, share * scale.high) for share in (0.25, 0.5, 0.75)),
        *(relative(cost_at(hull, share * scale.best_quality), scale.best_cost) for share in (0.95, 1.0)),
    )
