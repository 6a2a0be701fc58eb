"""The best of each row, and the best few: scores -> Selection."""

from __future__ import annotations

from polyroute.kernels import _xp
from polyroute.types import Array, Selection


def top_k(scores: Array, k: int) -> Selection:
    """The k best candidates of each row, best first.

    scores: [n, m], finite or -inf. Returns index and weight [n, min(k, m)]: a pool smaller than k is taken whole.
    Ties that are all chosen come in order of column on numpy; which of several tied at the edge gets in is not
    promised. Weights are the scores themselves and pass gradients.
    Raises: ConfigError if k is below 1.
    """
    values, index = _xp.top_k(scores, k)
    return Selection(index, values)


def argmax(scores: Array) -> Selection:
    """The best candidate of each row; the first of several tied. scores: [n, m]. Returns index and weight [n, 1]."""
    index = _xp.namespace(scores).argmax(scores, axis=-1, keepdims=True)
    return Selection(index, _xp.gather(scores, index))
