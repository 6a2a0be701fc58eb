"""Draw candidates at random, with the probability of what was drawn. The noise is an argument."""

from __future__ import annotations

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels import _xp
from polyroute.types import Array, Selection


def sample(probability: Array, uniform: Array) -> Selection:
    """Draw one candidate a row.

    probability: [n, m] >= 0, rows need not sum to 1. uniform: [n] in [0, 1]; 1 may come of rounding.
    Returns index, weight and propensity [n, 1]; weight is `probability` as given, propensity its share of the row.
    A candidate of probability 0 is never drawn, whatever the rounding.
    """
    if uniform.shape != probability.shape[:-1]:
        raise ShapeError("uniform", got=uniform.shape, expected=probability.shape[:-1])
    xp = _xp.namespace(probability, uniform)
    reached = xp.cumulative_sum(probability, axis=-1)  # [n, m]
    total = reached[..., -1:]
    passed = xp.sum(xp.astype(reached <= uniform[..., None] * total, xp.int64), axis=-1, keepdims=True)
    last = xp.sum(xp.astype(reached < total, xp.int64), axis=-1, keepdims=True)  # the last with any probability
    index = xp.minimum(passed, last)
    weight = _xp.gather(probability, index)
    return Selection(index, weight, weight / total)


def softmax_sample(scores: Array, gumbel: Array, *, temperature: float = 1.0, k: int = 1) -> Selection:
    """Draw k different candidates a row from softmax(scores / temperature), one after the other.

    scores: [n, m], -inf for a candidate that must not be drawn; at least k finite in each row.
    gumbel: [n, m] independent standard Gumbel noise, as from `gumbel_noise`.
    Returns index, weight (the scores) and propensity [n, k]. propensity[:, r] is the probability of draw r given
    the draws before it, so their product is the probability of the whole ordered draw (Plackett-Luce).
    Source: Kool, van Hoof and Welling 2019 (arXiv:1903.06059).
    """
    if not temperature > 0:
        raise ConfigError("temperature", got=temperature, expected="a number above 0")
    if gumbel.shape != scores.shape:
        raise ShapeError("gumbel", got=gumbel.shape, expected=scores.shape)
    xp = _xp.namespace(scores, gumbel)
    z = scores / temperature
    _, index = _xp.top_k(z + gumbel, k)
    column = xp.arange(scores.shape[-1], device=scores.device)
    left, chances = z, []
    for r in range(index.shape[-1]):
        drawn = index[..., r : r + 1]  # [n, 1]
        chances.append(xp.exp(_xp.gather(left, drawn) - _xp.logsumexp(left, axis=-1)))
        left = xp.where(column == drawn, xp.full_like(left, -xp.inf), left)
    return Selection(index, _xp.gather(scores, index), xp.concat(chances, axis=-1))


def gumbel_noise(uniform: Array) -> Array:
    """Standard Gumbel noise from uniform noise in [0, 1), any shape; finite for every input."""
    xp = _xp.namespace(uniform)
    tiny = xp.finfo(uniform.dtype).smallest_normal
    return -xp.log(-xp.log(xp.clip(uniform, min=tiny, max=1.0 - xp.finfo(uniform.dtype).eps)))
