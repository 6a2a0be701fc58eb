"""A whole batch under limits: prices, the plan they give, and a certificate of how far it is from the best.

Letters: n rows, m candidates, r resources (money, energy, seconds, a tenant's share).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.kernels.dual import budget_price, dual_bound, efficient_steps
from polyroute.types import Array

ROUNDING = 1e-9
LOST = -1e100  # stands for the score of a candidate that is ruled out


class Lottery(NamedTuple):
    """The one row that is split so that a single budget is spent exactly on average."""

    row: int
    column: int  # the dearer choice
    probability: float  # of the dearer choice; else the plan's own


class Plan(NamedTuple):
    """A choice for every row, and what no other choice can exceed."""

    choice: Array  # [n] int
    price: Array  # [r] score per unit of each resource
    use: Array  # [r] what the choices take together
    value: float  # sum of the choices' scores
    bound: float  # the dual value at `price`: no plan within the limits scores more
    feasible: bool  # whether the choices keep every limit; False only if no repair was found
    lottery: Lottery | None = None  # one resource only

    @property
    def gap(self) -> float:
        """The certificate: the best plan's value is at most this far above this plan's."""
        return self.bound - self.value


def plan_within(scores: Array, use: Array, limit: Array, *, method: str = "exact", steps: int = 200) -> Plan:
    """Choose one candidate a row for the most score, all rows together within their limits.

    scores: [n, m], -inf where a row may not go. use: [n, m, r] or [1, m, r], 0 or more. limit: [r] above 0.
    method: "exact" (one resource: all efficient steps in order of price), "subgradient" (Polyak steps towards the
    best plan found), "bundle" (cutting planes in a trust region; needs scipy) or "augmented" (rows in turn, overdraft
    charged quadratically). All but "exact" repair their choices: the dearest overdrafts are moved down at the least
    loss, then what is left is spent. steps: at most so many rounds of the last three.
    Source: slack-free Lagrangian duals for constrained assignment; Held, Wolfe and Crowder 1974 for the subgradient,
    Lemarechal 1975 for the bundle. The quantum solvers of "Cutting Slack" are not part of it.
    """
    n, m = scores.shape
    if use.shape[1:] != (m, len(limit)) or use.shape[0] not in (1, n):
        raise ShapeError("use", got=use.shape, expected=(n, m, len(limit)))
    if not (limit > 0).all():
        raise ConfigError("limit", got=limit, expected="numbers above 0, one a resource")
    methods: dict[str, Callable[[Array, Array, Array, int], tuple[Array, Array]]] = {
        "subgradient": subgradient, "bundle": bundle, "augmented": augmented,
    }  # fmt: skip
    if method == "exact":
        if len(limit) != 1:
            raise ConfigError("method", got=method, expected="a method for several limits, such as 'bundle'")
        return exact(scores, np.broadcast_to(use, (n, m, 1))[:, :, 0], float(limit[0]))
    if method not in methods:
        raise UnknownNameError("method", method, ["exact", *methods])
    use = np.broadcast_to(use, (n, m, len(limit)))
    price, choice = methods[method](scores, use, limit, steps)
    return finished(repaired(choice, scores, use, limit), price, scores, use, limit)


def exact(scores: Array, cost: Array, limit: float) -> Plan:
    """One budget: the linear programme solved exactly; one row at most is split, and the plan rounds it down."""
    every = efficient_steps(scores, cost)
    price = budget_price(every, limit)
    if price == np.inf:
        choice, over = every.column[:, 0], float(every.cost.sum())
        return Plan(choice, np.array([np.inf]), np.array([over]), float(taken(scores, choice).sum()), -np.inf, False)
    above = every.price > price
    count = above.sum(axis=1)  # prices fall along a row: the first steps
    spent = float(every.cost.sum() + every.more[above].sum())
    lottery = None
    for row, k in np.argwhere(every.price == price) if price > 0 else ():  # steps at the very price, until one is split
        if spent + every.more[row, k] > limit * (1 + ROUNDING):
            share = max(0.0, (limit - spent) / float(every.more[row, k]))
            lottery = Lottery(int(row), int(every.column[row, k + 1]), share)
            break
        count[row], spent = k + 1, spent + float(every.more[row, k])
    choice = np.take_along_axis(every.column, count[:, None], axis=1)[:, 0]
    return finished(choice, np.array([price]), scores, cost[:, :, None], np.array([limit]))._replace(lottery=lottery)


def subgradient(scores: Array, use: Array, limit: Array, steps: int) -> tuple[Array, Array]:
    """Price [r] and choice [n] of least dual value, by Polyak's step towards the best plan repaired so far."""
    price, target, patience = np.zeros(len(limit)), -np.inf, 1.0
    best: tuple[float, Array, Array] = (np.inf, price, np.zeros(len(scores), dtype=int))
    for step in range(steps):
        value, choice, slack = dual(price, scores, use, limit)
        if value < best[0] - ROUNDING:
            best = (value, price, choice)
        elif step % 10 == 9:
            patience /= 1.5
        if step % 10 == 0:
            plan = repaired(choice, scores, use, limit)
            target = max(target, float(taken(scores, plan).sum()) if kept(plan, use, limit) else -np.inf)
        if value - target <= ROUNDING or not slack.any():
            break
        aim = target if np.isfinite(target) else value - max(1.0, abs(value)) / 10  # until a plan keeps the limits
        slope = slack / limit  # resources of any unit step alike
        price = np.maximum(0.0, price - patience * (value - aim) * slope / float(slope @ slope) / limit)
    return best[1], best[2]


def bundle(scores: Array, use: Array, limit: Array, steps: int) -> tuple[Array, Array]:
    """Price [r] and choice [n] of least dual value: every point seen is a cut, a small LP picks the next."""
    from scipy.optimize import linprog

    centre = np.zeros(len(limit))
    value, choice, slack = dual(centre, scores, use, limit)
    spread = float(np.ptp(scores[np.isfinite(scores)])) or 1.0
    region = spread * len(scores) / limit  # a price at which one unit of limit costs all the score there is
    best, cuts, radius = (value, centre, choice), [(value, centre, slack)], 1.0
    for _ in range(steps):
        # least t with t >= value_k + slack_k (price - price_k): rows [slack_k / scale, -1], prices in units of region
        rows = np.array([[*(s * region), -1.0] for _, _, s in cuts])
        right = np.array([float(s @ p) - v for v, p, s in cuts])
        box = [(max(0.0, c / w - radius), c / w + radius) for c, w in zip(best[1], region, strict=True)]
        solved = linprog([*np.zeros(len(limit)), 1.0], A_ub=rows, b_ub=right, bounds=[*box, (None, None)])
        if not solved.success:
            break
        promised, price = float(solved.x[-1]), solved.x[:-1] * region
        if best[0] - promised <= ROUNDING * max(1.0, abs(best[0])):
            break
        value, choice, slack = dual(price, scores, use, limit)
        cuts.append((value, price, slack))
        if value < best[0]:
            best, radius = (value, price, choice), min(2 * radius, 4.0)
        else:
            radius /= 2
    return best[1], best[2]


def augmented(scores: Array, use: Array, limit: Array, steps: int) -> tuple[Array, Array]:
    """Price [r] and choice [n] by rows in turn, each charged (rho / 2) max(0, overdraft)^2 beside the price."""
    n = len(scores)
    share = use / limit  # [n, m, r]
    price, rho = np.zeros(len(limit)), float(np.ptp(scores[np.isfinite(scores)])) or 1.0
    choice = scores.argmax(axis=1)
    for _ in range(max(1, steps // 10)):
        total = taken(share, choice).sum(axis=0)
        for i in range(n):
            rest = total - share[i, choice[i]]
            over = np.maximum(0.0, rest + share[i] - 1.0)  # [m, r]
            charge = share[i] @ price + n * rho / 2 * (over**2).sum(axis=1)
            choice[i] = int((scores[i] - charge).argmax())
            total = rest + share[i, choice[i]]
        price = np.maximum(0.0, price + rho * (total - 1.0))
        if (np.abs(price * (total - 1.0)) <= 1.0 / n).all() and (total <= 1.0 + ROUNDING).all():
            break
    return price / limit, choice


def dual(price: Array, scores: Array, use: Array, limit: Array) -> tuple[float, Array, Array]:
    """The dual value at a price, its choice [n], and its slope [r]: what is left of each limit."""
    priced = scores - use @ price
    choice: Array = priced.argmax(axis=1)
    slack = limit - taken(use, choice).sum(axis=0)
    return float(taken(priced, choice).sum() + price @ limit), choice, slack


def repaired(choice: Array, scores: Array, use: Array, limit: Array) -> Array:
    """A plan near `choice` that keeps the limits, where moving single rows can; no move of one row improves it."""
    choice, rows = choice.copy(), np.arange(len(scores))
    for fills in (False, True):
        for _ in range(len(scores) * scores.shape[1]):
            left = 1.0 - taken(use, choice).sum(axis=0) / limit  # [r], in limits
            more = (use - use[rows, choice][:, None]) / limit  # [n, m, r]
            gain = np.where(scores > -np.inf, scores, LOST) - scores[rows, choice][:, None]
            if fills:
                fits = (more <= left + ROUNDING / 10).all(axis=2) & (gain > ROUNDING)
                worth = np.where(fits, gain / np.maximum(more.clip(min=0).sum(axis=2), 1e-12), -np.inf)
            else:
                over = np.maximum(0.0, -left)  # [r]
                if (over <= ROUNDING).all():
                    break
                eased = (over - np.maximum(0.0, more - left)).sum(axis=2)
                helps = (eased > 1e-12) & (gain > LOST / 2)
                ratio = np.where(helps, np.minimum(gain, -1e-12), -1.0) / np.maximum(eased, 1e-12)
                worth = np.where(helps, np.where(gain > 0, gain, ratio), -np.inf)
            i, j = np.unravel_index(int(worth.argmax()), worth.shape)
            if worth[i, j] == -np.inf:
                break
            choice[i] = j
    return choice


def finished(choice: Array, price: Array, scores: Array, use: Array, limit: Array) -> Plan:
    """The plan with its value and its certificate."""
    total = taken(use, choice).sum(axis=0)
    bound = float(dual_bound(price, scores, use, limit))
    return Plan(choice, price, total, float(taken(scores, choice).sum()), bound, kept(choice, use, limit))


def kept(choice: Array, use: Array, limit: Array) -> bool:
    """Whether the choices keep every limit."""
    return bool((taken(use, choice).sum(axis=0) <= limit * (1 + ROUNDING)).all())


def taken(values: Array, choice: Array) -> Array:
    """values[i, choice[i]] for every row: [n] or [n, r]."""
    return values[np.arange(len(choice)), choice]


def window_excess(paid: Array, limit: float, window: int = 1000) -> Array:
    """[n - window + 1] spend of every `window` requests in a row over their limit, less 1. paid: [n] USD, in order.

    For a stream whose costs are random this is the only honest reading of "over any 1,000 requests": all of them.
    """
    total = np.concatenate([[0.0], np.cumsum(paid)])
    return (total[window:] - total[:-window]) / (window * limit) - 1.0
