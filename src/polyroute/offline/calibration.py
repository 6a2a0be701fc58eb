"""Is a predicted quality true on average? Brier score, expected calibration error, and the table behind a diagram."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.errors import ShapeError
from polyroute.types import Array


class Bins(NamedTuple):
    """Predictions sorted into bins [b] of equal count; empty bins are left out."""

    predicted: Array  # [b] mean prediction
    observed: Array  # [b] mean outcome
    count: Array  # [b] int


def paired(predicted: Array, observed: Array) -> tuple[Array, Array]:
    """Both as flat arrays without the pairs of which one is NaN (not observed)."""
    predicted, observed = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if predicted.shape != observed.shape:
        raise ShapeError("observed", got=observed.shape, expected=predicted.shape)
    known = np.isfinite(predicted) & np.isfinite(observed)
    return predicted[known], observed[known]


def brier(predicted: Array, observed: Array) -> float:
    """Mean squared difference of predicted and observed quality, any equal shapes; NaN: not observed. 0 is best.

    Source: Brier 1950; for right or wrong outcomes this is the Brier score, for graded ones the mean squared error.
    """
    p, y = paired(predicted, observed)
    return float(np.mean((p - y) ** 2)) if len(p) else float("nan")


def calibration_bins(predicted: Array, observed: Array, num_bins: int = 15) -> Bins:
    """Predictions against outcomes in bins of equal count. Equal predictions always share a bin."""
    p, y = paired(predicted, observed)
    if not len(p):
        return Bins(np.empty(0), np.empty(0), np.empty(0, np.int64))
    edges = np.unique(np.quantile(p, np.linspace(0, 1, num_bins + 1)[1:-1]))
    member = np.searchsorted(edges, p, side="right")
    count = np.bincount(member, minlength=len(edges) + 1)
    kept = count > 0
    mean_p, mean_y = (np.bincount(member, v, minlength=len(edges) + 1)[kept] / count[kept] for v in (p, y))
    return Bins(mean_p, mean_y, count[kept])


def expected_calibration_error(predicted: Array, observed: Array, num_bins: int = 15) -> float:
    """Mean distance of predicted from observed quality over bins, weighted by count. 0 is best.

    Source: Naeini, Cooper and Hauskrecht 2015 (AAAI), with bins of equal count instead of equal width.
    A coarse measure: it is biased upwards with few outcomes a bin, so compare only at equal sample sizes.
    """
    bins = calibration_bins(predicted, observed, num_bins)
    if not len(bins.count):
        return float("nan")
    return float(np.average(np.abs(bins.predicted - bins.observed), weights=bins.count))
