"""Train a softmax policy on rewards of sampled choices: group-relative advantages and clipped steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, EstimateError, ShapeError
from polyroute.routers.irt import softmax
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Array, Candidate, Query, Rng


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """How `train_in_groups` samples and steps."""

    group: int = 8  # choices sampled for each query; their mean is the baseline
    batch: int = 64  # queries a batch
    epochs: int = 4  # passes over the queries
    inner: int = 2  # steps on one batch before new choices are sampled
    clip: float = 0.2  # how far P(choice) may move, as a share, before a step stops paying
    kl: float = 0.0  # reward lost per nat of distance from the policy at the start
    standardise: bool = True  # divide advantages by their group's spread, as GRPO does

    def __post_init__(self) -> None:
        for name in ("group", "batch", "inner"):
            if getattr(self, name) < (2 if name == "group" else 1):
                raise ConfigError(name, got=getattr(self, name), expected="1 or more, and 2 for a group")
        if not 0 < self.clip < 1:
            raise ConfigError("clip", got=self.clip, expected="a share above 0 and below 1")
        if not (self.kl >= 0 and self.epochs >= 0):
            raise ConfigError("kl, epochs", got=(self.kl, self.epochs), expected="0 or more")


def group_advantages(rewards: Array, *, standardise: bool = True) -> Array:
    """[n, g] rewards of g choices for each of n queries -> how much better each was than its group.

    A group whose rewards are all equal says nothing: zeros. Source: GRPO (arXiv:2402.03300).
    """
    rewards = np.asarray(rewards, dtype=float)
    if rewards.ndim != 2:
        raise ShapeError("rewards", got=rewards.shape, expected=("n", "g"))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if not standardise:
        return centred
    spread = rewards.std(axis=1, keepdims=True)
    return np.where(spread > 1e-9, centred / np.maximum(spread, 1e-9), 0.0)


def generalised_advantages(rewards: Array, values: Array, *, discount: float = 1.0, trace: float = 0.95) -> Array:
    """Advantages [t] of the steps of one trajectory. rewards: [t]; values: [t] expected return before each step.

    Source: GAE (arXiv:1506.02438); after the last step nothing is expected.
    """
    rewards, values = np.asarray(rewards, dtype=float), np.asarray(values, dtype=float)
    if rewards.shape != values.shape:
        raise ShapeError("values", got=values.shape, expected=rewards.shape)
    surprise = rewards + discount * np.append(values[1:], 0.0) - values
    found, ahead = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        ahead = surprise[t] + discount * trace * ahead
        found[t] = ahead
    return found


def clipped_objective(now: Array, then: Array, advantage: Array, clip: float) -> float:
    """Mean over choices of min(r A, clip(r) A), with r = P now / P when sampled. Source: PPO (arXiv:1707.06347)."""
    ratio = now / then
    return float(np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage).mean())


def clipped_slope(phi: Array, weight: Array, choice: Array, then: Array, advantage: Array, clip: float) -> Array:
    """Gradient [p, m] of `clipped_objective` by the weights of a softmax over phi @ weight.

    phi: [b, p]. choice: [b, g] columns sampled. then: [b, g] their probability when sampled. advantage: [b, g].
    """
    odds = softmax(phi @ weight)
    now = np.take_along_axis(odds, choice, axis=1)
    ratio = now / then
    stopped = ((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))
    pull = np.where(stopped, 0.0, ratio * advantage)  # [b, g]
    push = -odds * pull.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(phi)), choice.shape[1])
    np.add.at(push, (rows, choice.ravel()), pull.ravel())
    slope: Array = phi.T @ push / choice.size
    return slope


def train_in_groups(
    policy: SoftmaxPolicy,
    queries: Sequence[Query],
    pool: Sequence[Candidate],
    reward: Callable[[Array, Array], Array],
    config: GroupConfig,
    rng: Rng,
    progress: Callable[[float], None] = lambda mean: None,
) -> list[float]:
    """Sample choices, score them, step; returns the mean reward of each batch, also given to `progress`.

    reward: (rows [b] of `queries`, columns [b, g] of `pool`) -> [b, g]. It is called once a batch, so a reward with a
    memory (a cost window) sees every choice once. A policy never started starts here.
    Raises: EstimateError where a reward is not finite.
    """
    if policy.features_ is None:
        policy.start(queries, pool)
    phi = policy.phi(queries)
    origin, means = policy.weight_.copy(), []
    for _ in range(config.epochs):
        order = rng.permutation(len(phi))
        for rows in (order[i : i + config.batch] for i in range(0, len(order), config.batch)):
            choice, then = sampled(softmax(phi[rows] @ policy.weight_), config.group, rng)
            earned = np.asarray(reward(rows, choice), dtype=float)
            if earned.shape != choice.shape:
                raise ShapeError("reward", got=earned.shape, expected=choice.shape)
            if not np.isfinite(earned).all():
                i, j = np.argwhere(~np.isfinite(earned))[0]
                raise EstimateError("reward", row=int(rows[i]), column=int(choice[i, j]), got=float(earned[i, j]))
            advantage = group_advantages(earned, standardise=config.standardise)
            for _ in range(config.inner):
                slope = clipped_slope(phi[rows], policy.weight_, choice, then, advantage, config.clip)
                policy.step(slope - config.kl * distance_slope(phi[rows], policy.weight_, origin))
            means.append(float(earned.mean()))
            progress(means[-1])
    policy.settle(phi)
    return means


def sampled(odds: Array, count: int, rng: Rng) -> tuple[Array, Array]:
    """count columns drawn for each row of odds [b, m], with their probabilities: two arrays [b, g]."""
    mark = rng.random((len(odds), count, 1))
    index = np.minimum((odds.cumsum(axis=1)[:, None] <= mark).sum(axis=2), odds.shape[1] - 1)
    return index, np.take_along_axis(odds, index, axis=1)


def distance_slope(phi: Array, weight: Array, origin: Array) -> Array:
    """Gradient [p, m] of the mean KL divergence from the policy at `origin` to the one at `weight`."""
    odds, before = softmax(phi @ weight), softmax(phi @ origin)
    apart = np.log(np.maximum(odds, 1e-12)) - np.log(np.maximum(before, 1e-12))
    slope: Array = phi.T @ (odds * (apart - (odds * apart).sum(axis=1, keepdims=True))) / len(phi)
    return slope
