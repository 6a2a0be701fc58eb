"""Prices that spread soft choices within capacity, by Sinkhorn's alternate scaling."""

from __future__ import annotations

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels import _xp
from polyroute.types import Array


def sinkhorn_prices(
    scores: Array, capacity: Array, *, temperature: float = 0.1, steps: int = 50, fixed: bool = False
) -> Array:
    """Price candidates so that softmax((scores - price) / temperature) fits their capacity.

    scores: [n, m], -inf where a row may not go. capacity: [m] >= 0, rows each column can take; feasible when it
    sums to n or more. Otherwise prices rise with every step, but their differences still spread the rows in
    proportion to capacity. fixed: every column takes exactly its capacity, which sums to n: slack ones pay to be
    chosen, by a price below 0 (optimal transport).
    Returns price [m] in the unit of `scores`, >= 0 and exactly 0 where capacity does not bind (unless fixed), inf where
    it is 0; a column that no row may take has price 0.
    Rows are requests and columns instances, or rows are tokens and columns experts. Differentiable.
    Source: Cuturi 2013 (arXiv:1306.0895); there column sums are fixed, here they are bounded by default.
    """
    if capacity.shape != scores.shape[1:]:
        raise ShapeError("capacity", got=capacity.shape, expected=scores.shape[1:])
    if not temperature > 0:
        raise ConfigError("temperature", got=temperature, expected="a number above 0, in the unit of the scores")
    xp = _xp.namespace(scores)
    z, log_capacity = scores / temperature, _xp.log(capacity)
    price = xp.zeros_like(log_capacity)
    for _ in range(steps):
        row = _xp.logsumexp(z - price, axis=1)  # [n, 1]
        row = xp.where(xp.isfinite(row), row, xp.zeros_like(row))  # a row that may go nowhere loads nothing
        load = _xp.logsumexp(z - row, axis=0)[0, :]  # [m], log of the load at price 0
        load = xp.where(xp.isfinite(load), load - log_capacity, xp.zeros_like(load))
        price = load if fixed else xp.clip(load, min=0.0)
    return price * temperature
