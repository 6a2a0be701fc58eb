"""A line drawn through scores: everything above it, or the first above it."""

from __future__ import annotations

from polyroute.kernels import _xp
from polyroute.types import Array, Selection


def threshold(scores: Array, limit: float | Array, *, k: int | None = None, least: int = 1) -> Selection:
    """Keep what scores `limit` or more: a row takes as many candidates as deserve it.

    scores: [n, m] >= 0, such as probabilities or sigmoid gates. limit: a number, or [n, 1] one a row.
    k: at most so many. least: so many are kept even below the limit; 0 lets a row keep none.
    Returns index and weight [n, min(k, m)], best first, with weight exactly 0 where a place is not filled, so that
    shapes never depend on values.
    """
    xp = _xp.namespace(scores)
    values, index = _xp.top_k(scores, scores.shape[-1] if k is None else k)
    keep = values >= limit
    if least:
        rank = xp.arange(values.shape[-1], device=values.device)
        keep = keep | (rank < least)
    return Selection(index, xp.where(keep, values, xp.zeros_like(values)))


def first_above(scores: Array, limit: float | Array) -> Selection:
    """The first candidate good enough, else the last: columns stand in order of preference, say cheapest first.

    scores: [n, m]. limit: a number, or [m] one a column. Returns index and weight [n, 1].
    With two columns this is the rule "strong model only if the weak one is not good enough".
    Source: RouteLLM (arXiv:2406.18665) for two models; any number here.
    """
    xp = _xp.namespace(scores)
    num_columns = scores.shape[-1]
    last = xp.arange(num_columns, device=scores.device) == num_columns - 1
    index = xp.argmax(xp.astype((scores >= limit) | last, xp.int32), axis=-1, keepdims=True)
    return Selection(index, _xp.gather(scores, index))
