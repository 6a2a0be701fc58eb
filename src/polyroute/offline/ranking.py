"""Whether predictions rank: the chance that a success was rated above a failure."""

from __future__ import annotations

import numpy as np

from polyroute.errors import ShapeError
from polyroute.types import Array


def auc(predicted: Array, observed: Array) -> float:
    """P(a success is rated above a failure), ties half. predicted: [n]; observed: [n], a success at 0.5 or more.

    NaN where there is no success or no failure: nothing to rank. NaN in `observed` is left out.
    """
    predicted, observed = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if predicted.shape != observed.shape or predicted.ndim != 1:
        raise ShapeError("observed", got=observed.shape, expected=predicted.shape)
    known = ~np.isnan(observed)
    predicted, success = predicted[known], observed[known] >= 0.5
    wins, losses = int(success.sum()), int((~success).sum())
    if not wins or not losses:
        return float("nan")
    _, level, count = np.unique(predicted, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[level]  # mean rank of ties
    return float((rank[success].sum() - wins * (wins + 1) / 2) / (wins * losses))


def intra_auc(predicted: Array, observed: Array) -> Array:
    """The AUC within each candidate, [m]. predicted, observed: [n, m].

    Over all candidates together the figure is inflated: telling strong ones from weak ones is not ranking prompts.
    """
    if np.shape(predicted) != np.shape(observed):
        raise ShapeError("observed", got=np.shape(observed), expected=np.shape(predicted))
    return np.array([auc(p, y) for p, y in zip(np.asarray(predicted).T, np.asarray(observed).T, strict=True)])
