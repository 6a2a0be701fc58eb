"""Which model for which step: labels by a grouped search that asks a solver a few dozen times instead of m^n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array

S = TypeVar("S")


class Allocation(NamedTuple):
    """The cheapest allocation found whose final answer is right."""

    columns: tuple[int, ...]  # the model of each step, a column of `cost`
    cost: float  # USD of the steps so allocated
    right: bool  # False: nothing tried was right; then everything is with the dearest
    calls: int  # runs of all steps


class Search(NamedTuple, Generic[S]):
    """What a search asks of the world."""

    steps: Sequence[S]
    is_correct: Callable[[tuple[int, ...]], bool]  # the final answer, given the model of every step
    cost: Array  # [n, m] USD of each step with each model


def groups_by_price(cost: Array, num_groups: int = 3) -> list[list[int]]:
    """Columns in `num_groups` groups of near equal size, cheapest first. cost: [n, m] or [m] USD."""
    mean = np.atleast_2d(cost).mean(axis=0)
    if not 1 <= num_groups <= len(mean):
        raise ConfigError("num_groups", got=num_groups, expected=f"1 to {len(mean)}, the number of models")
    return [[int(j) for j in part] for part in np.array_split(np.argsort(mean, kind="stable"), num_groups)]


def exhaustive_allocation(search: Search[S]) -> Allocation:
    """The cheapest right allocation of all m^n; each attempt calls the solver once a step."""
    n, m = search.cost.shape
    best, calls = None, 0
    for columns in product(range(m), repeat=n):
        calls += 1
        price = float(search.cost[np.arange(n), columns].sum())
        if (best is None or price < best.cost) and search.is_correct(columns):
            best = Allocation(columns, price, True, calls)
    return best._replace(calls=calls) if best else dearest(search, calls)


def dearest(search: Search[S], calls: int) -> Allocation:
    columns = tuple(int(j) for j in search.cost.argmax(axis=1))
    return Allocation(columns, float(search.cost.max(axis=1).sum()), False, calls)


def grouped_allocation_search(
    search: Search[S], difficulty: Array, groups: Sequence[Sequence[int]], *,
    thresholds: Sequence[float] = (1 / 3, 2 / 3), max_calls: int = 40,
) -> Allocation:  # fmt: skip
    """A cheap right allocation: start from each step's group, then go down while right, up while wrong.

    difficulty: [n] in 0..1, for example one minus a low quantile of the base model's token probabilities on the step.
    thresholds: where the easy group ends and the hard one begins (published values not known, inferred). groups: from
    `groups_by_price`; a group is represented by its middle member. While wrong, the hardest step that can go up does,
    one group at a time, and at last everything goes to the dearest. Once right, moves of one step to a cheaper model
    are tried, the largest saving first, and kept where the answer is still right. A call is one run of all steps.
    Source: R2-Reasoner (arXiv:2506.05901).
    """
    n = len(search.cost)
    if np.shape(difficulty) != (n,):
        raise ShapeError("difficulty", got=np.shape(difficulty), expected=(n,))
    if len(thresholds) != len(groups) - 1:
        raise ConfigError("thresholds", got=tuple(thresholds), expected=f"{len(groups) - 1}, one fewer than groups")
    place = [int(np.sum(d >= np.asarray(thresholds))) for d in difficulty]
    columns, calls = [middle(groups[g]) for g in place], 1
    while not (right := search.is_correct(tuple(columns))) and calls < max_calls:
        calls += 1
        can = [k for k in range(n) if place[k] + 1 < len(groups)]
        if not can:
            columns = [int(j) for j in search.cost.argmax(axis=1)]
            right = search.is_correct(tuple(columns))
            break
        hardest = max(can, key=lambda k: (difficulty[k], -place[k]))
        place[hardest] += 1
        columns[hardest] = middle(groups[place[hardest]])
    if not right:
        return dearest(search, calls)
    columns, calls = lowered(search, columns, calls, max_calls)
    return Allocation(tuple(columns), float(search.cost[np.arange(n), columns].sum()), True, calls)


def lowered(search: Search[S], columns: list[int], calls: int, max_calls: int) -> tuple[list[int], int]:
    """A right allocation made cheaper step by step, and the calls made by then."""
    n, m = search.cost.shape
    moves = [(float(search.cost[k, columns[k]] - search.cost[k, j]), k, j) for k in range(n) for j in range(m)]
    for saving, k, j in sorted(moves, reverse=True):
        if saving <= 0 or calls >= max_calls:
            break
        if search.cost[k, j] >= search.cost[k, columns[k]]:
            continue  # this step has found something cheaper already
        trial = [*columns[:k], j, *columns[k + 1 :]]
        calls += 1
        if search.is_correct(tuple(trial)):
            columns = trial
    return columns, calls


def middle(group: Sequence[int]) -> int:
    """The member that stands for its group."""
    return group[len(group) // 2]
