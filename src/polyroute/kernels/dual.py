"""Prices by dual ascent: raise the price of what is overused, lower the price of what is not."""

from __future__ import annotations

from typing import NamedTuple

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


class Steps(NamedTuple):
    """Each row's way from its cheapest choice to its best, along the choices that some price makes best.

    Zero price, cost and gain stand where a row has no step left. A row takes its first k steps at a price below the
    k-th and not below the next; prices fall along a row.
    """

    column: Array  # [n, m] int: the choice before any step, then after each
    cost: Array  # [n] of the choice before any step, the cheapest (of several as cheap the best)
    price: Array  # [n, m - 1] score gained for each unit of cost
    more: Array  # [n, m - 1] cost added by the step, above 0
    gain: Array  # [n, m - 1] score added by the step


def efficient_steps(scores: Array, cost: Array) -> Steps:
    """The upper hull of each row's (cost, score) points, as steps. scores, cost: [n, m], scores -inf where ruled out.

    Taking all steps of all rows in order of falling price until a budget is spent is the exact optimum of the linear
    programme, with one row split. Source: Sinha and Zoltners 1979, The multiple-choice knapsack problem.
    """
    xp = _xp.namespace(scores, cost)
    column = xp.arange(scores.shape[-1], device=scores.device)
    endless = xp.full_like(cost, xp.inf)
    charged = xp.where(scores > -xp.inf, cost, endless)
    least = xp.min(charged, axis=-1, keepdims=True)
    at = xp.argmax(xp.where(charged == least, scores, -endless), axis=-1, keepdims=True)
    columns: list[Array] = [at]
    prices: list[Array] = []
    mores: list[Array] = []
    gains: list[Array] = []
    for _ in range(scores.shape[-1] - 1):
        more = charged - _xp.gather(charged, at)
        gain = scores - _xp.gather(scores, at)
        up = (more > 0) & (gain > 0) & (more < xp.inf)
        slope = xp.where(up, gain / xp.where(up, more, xp.ones_like(more)), xp.zeros_like(more))
        top = xp.max(slope, axis=-1, keepdims=True)
        far = xp.where(up & (slope == top), more, -endless)  # of several on one line the last, in one step
        moved = xp.any(up, axis=-1, keepdims=True)
        after = xp.where(moved, xp.argmax(far, axis=-1, keepdims=True), at)
        chosen = column == after
        for values, found in ((more, mores), (gain, gains)):
            found.append(xp.sum(xp.where(chosen & moved, values, xp.zeros_like(values)), axis=-1, keepdims=True))
        prices.append(top)
        columns.append(after)
        at = after
    none = cost[:, :0]
    joined = [xp.concat(part, axis=-1) if part else none for part in (prices, mores, gains)]
    return Steps(xp.concat(columns, axis=-1), least[:, 0], *joined)


def budget_price(steps: Steps, limit: float) -> float:
    """The least price at which the rows' own best choices together cost `limit` or less; exact.

    0 if all steps fit; infinite if the cheapest choices alone cost more.
    """
    xp = _xp.namespace(steps.price)
    spare = limit - float(xp.sum(steps.cost))
    if spare < 0:
        return float("inf")
    price, more = xp.reshape(steps.price, (-1,)), xp.reshape(steps.more, (-1,))
    order = xp.argsort(price, descending=True)
    spent = xp.cumulative_sum(xp.take(more, order))
    over = spent > spare * (1 + 1e-12)
    if not bool(xp.any(over)):
        return 0.0
    first = int(xp.argmax(xp.astype(over, xp.int32)))
    return float(xp.take(price, order)[first])


def dual_bound(price: Array, scores: Array, use: Array, limit: Array) -> Array:
    """What no plan within the limits can exceed: sum of each row's best priced score, plus price * limit.

    Shapes as in `dual_prices`; any price >= 0 gives a valid bound, the right one the tightest. A plan's value and this
    number are its certificate: the plan is at most their difference away from the best.
    """
    xp = _xp.namespace(scores)
    return xp.sum(xp.max(scores - xp.sum(use * price, axis=-1), axis=-1)) + xp.sum(price * limit)
