"""Prices by dual ascent: raise the price of what is overused, lower the price of what is not."""

from __future__ import annotations

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels import _xp
from polyroute.types import Array


def dual_step(price: Array, use: Array, limit: Array, *, rate: float) -> Array:
    """One step of a price towards balance: max(0, price + rate * (use - limit)).

    price, use, limit: numbers or arrays of one shape; price is per unit of `use`, rate is price per unit of excess.
    Over T steps the mean excess is at most the last price / (rate * T), whatever the traffic was.
    Source: Balseiro, Lu and Mirrokni 2020 (arXiv:2011.10124), Euclidean case; loss-free balancing of experts
    (arXiv:2408.15664) takes the sign of the excess and lets prices go below 0.
    """
    moved = price + rate * (use - limit)
    return (moved + abs(moved)) / 2  # max(0, moved), the same on a float and on an array of any library


def dual_prices(scores: Array, use: Array, limit: Array, *, rate: float = 1.0, steps: int = 1000) -> Array:
    """The prices at which each row's own best choice keeps all rows together within their limits.

    scores: [n, m] with n >= 1, -inf where a row may not go.
    use: [n, m, r] what a choice takes of each resource, or [1, m, r] if every row takes the same.
    limit: [r] > 0, what all n rows may take together. Returns price [r] >= 0, in scores per unit of the resource;
    the choice is top_k(scores - sum(use * price)).
    A budget has one resource, `use[:, :, 0]` = cost [n, m]. Capacity has one resource a column, `use[0]` = identity.
    rate: first step, relative to the spread of the scores. Steps shrink as 1 / sqrt(step); the mean of the second
    half of the way is returned, within O(1 / sqrt(steps)) of the optimum of the linear programme.
    Source: Balseiro, Lu and Mirrokni 2020 (arXiv:2011.10124), run offline over the whole batch.
    """
    num_rows, num_columns = scores.shape
    if use.shape[1:] != (num_columns, limit.shape[0]) or use.shape[0] not in (1, num_rows):
        raise ShapeError("use", got=use.shape, expected=(num_rows, num_columns, limit.shape[0]))
    if steps < 1:
        raise ConfigError("steps", got=steps, expected="1 or more")
    xp = _xp.namespace(scores)
    share = use * num_rows / limit  # [n, m, r]; 1 is a fair row's part, and prices are scores a fair part
    column = xp.arange(num_columns, device=scores.device)
    top = xp.max(scores)
    spread = top - xp.min(xp.where(xp.isfinite(scores), scores, top))
    price, total, counted = xp.zeros_like(limit), xp.zeros_like(limit), 0
    for step in range(steps):
        best = xp.argmax(scores - xp.sum(share * price, axis=-1), axis=-1, keepdims=True)  # [n, 1]
        taken = xp.astype(column == best, scores.dtype)[..., None] * share  # [n, m, r]
        mean_use = xp.sum(taken, axis=(0, 1)) / num_rows
        price = dual_step(price, mean_use, xp.ones_like(limit), rate=rate * spread / (step + 1) ** 0.5)
        if 2 * step >= steps:
            total, counted = total + price, counted + 1
    return total / counted * num_rows / limit
