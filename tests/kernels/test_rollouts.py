"""Rollouts: worth what the formula says, and shared out as well as by trying every way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels.rollouts import allocate_rollouts, group_utility


def worth(chance, count):
    return float(group_utility(np.asarray(chance), np.asarray(count)).sum())


def best_by_trying(chance, total, low, high):
    ways = itertools.product(range(low, high + 1), repeat=len(chance))
    return max(worth(chance, way) for way in ways if sum(way) <= total)


def test_the_utility_of_a_group_is_closed_form():
    assert group_utility(np.array([0.5]), np.array([2])) == pytest.approx(2 * 0.5 * 0.5)
    assert group_utility(np.array([0.25]), np.array([3])) == pytest.approx(3 * 0.75 * (1 - 0.75**2))
    assert group_utility(np.array([0.0, 1.0]), np.array([8, 8])).tolist() == [0.0, 0.0]
    assert group_utility(np.array([0.3]), np.array([1])) == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(12))
def test_a_share_is_as_good_as_the_best_of_all_where_steps_fit(seed):
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.35, 0.9, size=3)  # concave from two on: every step is one rollout
    total = int(rng.integers(6, 22))
    given = allocate_rollouts(chance, total, high=9)
    assert given.sum() == total
    assert given.min() >= 2
    assert given.max() <= 9
    assert worth(chance, given) == pytest.approx(best_by_trying(chance, total, 2, 9))


@pytest.mark.parametrize("seed", range(8))
def test_hard_prompts_too_within_one_step_of_the_best(seed):
    rng = np.random.default_rng(seed)
    chance = rng.uniform(0.02, 0.9, size=3)
    total = int(rng.integers(8, 22))
    given = allocate_rollouts(chance, total, high=9)
    assert given.sum() == total
    best = best_by_trying(chance, total, 2, 9)
    assert worth(chance, given) > best - group_utility(chance, np.full(3, 9)).max()
    assert worth(chance, given) > 0.85 * best


def test_a_hard_prompt_gets_a_long_step_at_once():
    given = allocate_rollouts(np.array([0.05, 0.97]), 40)
    assert given.tolist() == [38, 2]  # one by one the second, easy prompt would have gained more at each step


def test_equal_prompts_are_treated_alike():
    assert allocate_rollouts(np.full(5, 0.5), 40).tolist() == [8] * 5


def test_more_than_can_be_given_is_not_given():
    assert allocate_rollouts(np.array([0.5, 0.2]), 1000, high=6).tolist() == [6, 6]
    assert allocate_rollouts(np.zeros(0), 0).shape == (0,)


def test_a_budget_below_the_least_and_a_wrong_shape_are_told():
    with pytest.raises(ConfigError, match="2 rollouts for each of 3 prompts"):
        allocate_rollouts(np.full(3, 0.5), 5)
    with pytest.raises(ConfigError, match="low"):
        allocate_rollouts(np.full(3, 0.5), 50, low=9, high=8)
    with pytest.raises(ShapeError, match="chance"):
        allocate_rollouts(np.full((3, 1), 0.5), 50)
