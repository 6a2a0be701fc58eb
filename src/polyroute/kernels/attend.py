"""Attention to few of many prototypes: which domains a token belongs to, and what they say of it."""

from __future__ import annotations

from typing import NamedTuple

from polyroute.errors import ShapeError
from polyroute.kernels._xp import gather, logsumexp, namespace, top_k
from polyroute.types import Array


class Attended(NamedTuple):
    """What tokens took from prototypes."""

    output: Array  # [t, v] weighted values
    index: Array  # [t, k] the prototypes attended to, best first
    weight: Array  # [t, k] their shares; rows sum to 1
    share: Array  # [p] mean weight of each prototype over the tokens: the routing weight of the whole text


def sparse_attention(queries: Array, keys: Array, values: Array, k: int) -> Attended:
    """softmax over each token's k highest scores, softmax(top_k(Q K' / sqrt(d))) V; the others are not computed.

    queries: [t, d]. keys: [p, d]. values: [p, v]. k = p is dense attention. Values are read k a token, so their compute
    is k / p of the dense one. Source: the sparse cross-attention router (SCAR) of GEM; formula (inferred).
    """
    if keys.ndim != 2 or queries.shape[-1:] != keys.shape[1:]:
        raise ShapeError("queries", got=queries.shape, expected=("t", *keys.shape[1:]))
    if values.shape[:1] != keys.shape[:1]:
        raise ShapeError("values", got=values.shape, expected=(keys.shape[0], "v"))
    if not 1 <= k <= keys.shape[0]:
        raise ShapeError("k", got=(k,), expected=(f"1 to {keys.shape[0]}",))
    xp = namespace(queries)
    scores = queries @ keys.T / float(keys.shape[1]) ** 0.5  # [t, p]
    _, index = top_k(scores, k)
    best = gather(scores, index)
    weight = xp.exp(best - logsumexp(best, axis=1))  # [t, k]
    output = xp.take(values, index[:, 0], axis=0) * weight[:, 0:1]
    for rank in range(1, k):
        output = output + xp.take(values, index[:, rank], axis=0) * weight[:, rank : rank + 1]
    member = xp.astype(index[:, :, None] == xp.arange(keys.shape[0])[None, None, :], weight.dtype)  # [t, k, p]
    share = xp.mean(xp.sum(member * weight[:, :, None], axis=1), axis=0)
    return Attended(output, index, weight, share)
