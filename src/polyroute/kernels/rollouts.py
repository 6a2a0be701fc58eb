"""How many answers to sample for each prompt, when a group teaches only where its answers differ."""

from __future__ import annotations

import heapq

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array


def group_utility(chance: Array, count: Array) -> Array:
    """What sampling `count` answers of success probability `chance` is worth: B (1 - p) (1 - (1 - p)^(B - 1)).

    chance: [n] in 0..1. count: [n] or broadcast, 1 or more. Nothing for prompts always solved or never solved.
    Source: the group utility of V0 (value at state zero), for groups of B rollouts.
    """
    fail = 1.0 - np.asarray(chance, dtype=float)
    count = np.asarray(count, dtype=float)
    worth: Array = count * fail * (1.0 - fail ** (count - 1.0))
    return worth


def allocate_rollouts(chance: Array, total: int, *, low: int = 2, high: int = 128) -> Array:
    """Share `total` rollouts out among prompts so that the summed group utility is greatest; [n] int.

    chance: [n] expected probability of success. Every prompt gets `low`, none more than `high`. Steps are taken in the
    order of their gain a rollout, and a step is as long as pays best: for hard prompts the utility is convex at first,
    so rollouts one by one would never start on them. What the last step leaves over is given out one by one.
    Exact but for that last step. Raises: ConfigError if `total` does not give every prompt `low`.
    """
    chance = np.asarray(chance, dtype=float)
    if chance.ndim != 1:
        raise ShapeError("chance", got=chance.shape, expected=("n",))
    if not 1 <= low <= high:
        raise ConfigError("low", got=low, expected=f"1 to high={high}")
    n = len(chance)
    if total < low * n:
        raise ConfigError("total", got=total, expected=f"{low} rollouts for each of {n} prompts, {low * n} or more")
    count, left = np.full(n, low), min(total, high * n) - low * n
    worth = group_utility(chance[:, None], np.arange(low, high + 1)[None])  # [n, high - low + 1]
    steps: list[tuple[float, int, int]] = []
    for i in range(n):
        start = 0
        while start < high - low:  # the concave hull of a prompt's utility, from its left end
            slope = (worth[i, start + 1 :] - worth[i, start]) / np.arange(1, high - low - start + 1)
            length = int(np.flatnonzero(slope >= slope.max() - 1e-12)[-1]) + 1
            steps.append((-float(slope.max()), i, length))
            start += length
    steps.sort(key=lambda step: step[0])  # stable, so a prompt's steps stay in their order
    for _, i, length in steps:
        if length <= left:
            count[i] += length
            left -= length
        else:
            return one_by_one(worth, count, left, low)
    return count


def one_by_one(worth: Array, count: Array, left: int, low: int) -> Array:
    """Give out `left` rollouts, each where the next one gains most. worth: [n, b] for low, low + 1, ... rollouts."""
    count = count.copy()
    gain = np.diff(worth, axis=1)
    heap = [(-gain[i, c - low], i) for i, c in enumerate(count) if c - low < gain.shape[1]]
    heapq.heapify(heap)
    for _ in range(left):
        _, i = heapq.heappop(heap)
        count[i] += 1
        if count[i] - low < gain.shape[1]:
            heapq.heappush(heap, (-gain[i, count[i] - low], i))
    return count
