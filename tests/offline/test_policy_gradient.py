"""Clipped steps over groups: gradients against finite differences, and a policy that finds what pays."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, EstimateError, ShapeError
from polyroute.offline.policy_gradient import (
    GroupConfig,
    clipped_objective,
    clipped_slope,
    distance_slope,
    generalised_advantages,
    group_advantages,
    sampled,
    train_in_groups,
)
from polyroute.policies.explore import Softmax
from polyroute.routers.irt import softmax
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Objective


def test_advantages_are_relative_to_the_group():
    found = group_advantages(np.array([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]]))
    assert found.tolist() == [[1, -1, -1, 1], [0, 0, 0, 0]]
    assert group_advantages(np.array([[3.0, 1.0]]), standardise=False).tolist() == [[1, -1]]
    with pytest.raises(ShapeError):
        group_advantages(np.ones(3))


def test_generalised_advantages_at_both_ends():
    rewards, values = np.array([1.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5])
    returns = rewards[::-1].cumsum()[::-1]
    assert generalised_advantages(rewards, values, trace=1.0) == pytest.approx(returns - values)
    assert generalised_advantages(rewards, values, trace=0.0) == pytest.approx([1.5, 0.5, 0.5])


def numerical(function, weight, eps=1e-6):
    slope = np.zeros(weight.shape)
    for at in np.ndindex(weight.shape):
        up, down = weight.copy(), weight.copy()
        up[at] += eps
        down[at] -= eps
        slope[at] = (function(up) - function(down)) / (2 * eps)
    return slope


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.9])
def test_the_slope_is_that_of_the_clipped_objective(clip):
    rng = np.random.default_rng(0)
    phi, weight = rng.normal(size=(7, 3)), rng.normal(size=(3, 4))
    choice, then = sampled(softmax(phi @ (weight + 0.3 * rng.normal(size=(3, 4)))), 5, rng)
    advantage = rng.normal(size=(7, 5))

    def objective(w):
        return clipped_objective(np.take_along_axis(softmax(phi @ w), choice, axis=1), then, advantage, clip)

    slope = clipped_slope(phi, weight, choice, then, advantage, clip)
    assert slope == pytest.approx(numerical(objective, weight), abs=1e-6)
    assert np.abs(slope).max() > 1e-3


def test_the_slope_of_the_distance():
    rng = np.random.default_rng(1)
    phi, weight, origin = rng.normal(size=(6, 3)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))

    def distance(w):
        odds, before = softmax(phi @ w), softmax(phi @ origin)
        return float((odds * (np.log(odds) - np.log(before))).sum(axis=1).mean())

    assert distance_slope(phi, weight, origin) == pytest.approx(numerical(distance, weight), abs=1e-6)


def test_choices_are_drawn_with_their_probability():
    odds = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    index, chance = sampled(odds, 20_000, np.random.default_rng(2))
    assert np.bincount(index[0], minlength=3) / 20_000 == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert (index[1] == 2).all()
    assert (chance[0] == odds[0][index[0]]).all()


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(600, 3, rng=np.random.default_rng(7))
    split = found.outcomes.labels["split"]
    rows = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    return found.outcomes.take(rows[0]), found.outcomes.take(rows[1]), found.success[rows[1]]


def test_sampled_rewards_lead_close_to_the_best_choice(world):
    train, test, success = world
    policy = SoftmaxPolicy(rate=0.05)
    quality = train.values["quality"]
    means = train_in_groups(policy, train.queries, train.pool, lambda rows, choice: quality[rows[:, None], choice],
                            GroupConfig(epochs=12), np.random.default_rng(0))  # fmt: skip
    choice = policy.predict(test.queries, test.pool)["preference"].mean.argmax(axis=1)
    earned = success[np.arange(len(test)), choice].mean()
    best, single = success.max(axis=1).mean(), success.mean(axis=0).max()
    assert np.mean(means[-5:]) > np.mean(means[:5]) + 0.05
    assert earned > single
    assert earned > best - 0.06


def test_a_policy_held_to_its_start_stays_there(world):
    train, _, _ = world
    quality = train.values["quality"]
    policy = SoftmaxPolicy(rate=0.01, l2=0.0)
    train_in_groups(policy, train.queries, train.pool, lambda rows, choice: quality[rows[:, None], choice],
                    GroupConfig(epochs=6, kl=1e4), np.random.default_rng(0))  # fmt: skip
    assert policy.odds(train.queries, train.pool) == pytest.approx(1 / 3, abs=0.05)


def test_the_same_seed_trains_the_same_policy_and_bad_rewards_are_named(world):
    train, _, _ = world

    def weights(reward):
        policy = SoftmaxPolicy()
        train_in_groups(policy, train.queries, train.pool, reward, GroupConfig(epochs=1), np.random.default_rng(3))
        return policy.weight_

    quality = train.values["quality"]
    ok = lambda rows, choice: quality[rows[:, None], choice]  # noqa: E731
    assert (weights(ok) == weights(ok)).all()
    with pytest.raises(EstimateError, match="reward"):
        weights(lambda rows, choice: np.where(choice == 1, np.nan, 1.0))
    with pytest.raises(ShapeError, match="reward"):
        weights(lambda rows, choice: np.ones(3))
    with pytest.raises(ConfigError, match="group"):
        GroupConfig(group=1)
    with pytest.raises(ConfigError, match="clip"):
        GroupConfig(clip=0.0)


def test_fit_on_a_full_table_climbs_the_expected_reward_and_is_drawn_from_as_trained(world):
    train, test, success = world
    policy = SoftmaxPolicy().fit(train)
    odds = policy.odds(test.queries, test.pool)
    assert (odds * success).sum(axis=1).mean() > success.mean(axis=0).max()
    estimates = policy.predict(test.queries, test.pool)
    allowed = np.ones(odds.shape, bool)
    assert Softmax(1.0).probabilities(estimates, Objective({"preference": 1.0}), allowed) == pytest.approx(odds)
    undecided = SoftmaxPolicy(entropy=10.0).fit(train).odds(test.queries, test.pool)
    assert np.abs(undecided - 1 / 3).max() < 0.05
