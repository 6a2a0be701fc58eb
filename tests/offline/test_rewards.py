"""Rewards: form before outcome before cost; closed forms and the invariance the cost score promises."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.rewards import (
    PercentileCost,
    RouteReward,
    adaptive_reward,
    cost_of_pass,
    exact_match,
    mixed,
    set_reward,
    token_f1,
)

GOOD = "<think>t</think><search>m: q?</search><information>i</information><answer>The Eiffel Tower.</answer>"


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert exact_match("The Eiffel Tower.", "eiffel  tower") == 1.0
    assert exact_match("Eiffel", "Eiffel Tower") == 0.0
    assert token_f1("the eiffel", "Eiffel Tower") == pytest.approx(2 / 3)
    assert token_f1("x", "y") == 0.0
    assert token_f1("", "the") == 1.0


def test_form_then_outcome_then_cost():
    reward = RouteReward(["m"], alpha=0.6, cheapness=lambda cost: np.exp(-cost))
    assert reward("<answer>eiffel tower</answer>", 0.0, "eiffel tower") == -1.0, "right, but not in form"
    assert reward(GOOD, 0.0, "big ben") == 0.0, "cheap, but wrong"
    assert reward(GOOD, 0.0, "eiffel tower") == pytest.approx(1.0)
    assert reward(GOOD, 1.0, "eiffel tower") == pytest.approx(0.4 + 0.6 * np.exp(-1.0))
    assert reward(GOOD.replace("m:", "other:"), 0.0, "eiffel tower") == -1.0
    assert RouteReward(["m"])(GOOD, 1e9, "eiffel tower") == 1.0, "alpha is 0 unless asked for: cost does not count"
    graded = RouteReward(["m"], alpha=0.5, cheapness=lambda cost: 0 * cost + 1.0, match=token_f1)
    assert graded(GOOD, 0.0, "tower") == pytest.approx(0.5 * 2 / 3 + 0.5)


def test_a_cost_is_placed_between_percentiles_of_what_was_seen_before():
    cost = PercentileCost(window=101)
    assert cost(np.array([5.0])).tolist() == [0.5]
    assert cost(np.array([5.0])).tolist() == [0.5], "one cost seen twice is no range"
    cost.seen_.clear()
    cost(np.arange(101.0) ** 2)  # roots 0..100: percentiles 5 and 95 are 5 and 95
    assert cost(np.array([0.0, 25.0, 50.0**2, 95.0**2, 1e9])) == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert len(cost.seen_) == 101, "the oldest are forgotten"


def test_the_unit_of_money_cancels():
    costs = np.random.default_rng(0).lognormal(size=(40, 16))
    one, other = PercentileCost(), PercentileCost()
    for row in costs:
        assert one(row) == pytest.approx(other(1000.0 * row), abs=1e-12)


def test_a_cost_that_is_none_is_an_error():
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="costs"):
            PercentileCost()(np.array([1.0, bad]))
    with pytest.raises(ConfigError, match="window"):
        PercentileCost(window=1)
    with pytest.raises(ConfigError, match="low, high"):
        PercentileCost(low=95, high=5)
    with pytest.raises(ConfigError, match="alpha"):
        RouteReward(["m"], alpha=1.5)


def test_cheapness_is_paid_for_right_answers_only():
    assert mixed(np.array([0.0, 0.0, 1.0, 0.5]), np.array([1.0, 0.0, 0.0, 1.0]), 0.8) == pytest.approx([0, 0, 0.2, 0.9])


def test_more_than_was_needed_earns_less_and_never_less_than_wrong():
    shares = np.array([0.0, 1 / 3, 2 / 3, 1.0])
    found = adaptive_reward(1.0, 1.0, False, shares)
    assert found == pytest.approx([1.0, 1.0, 1 - 4 / 9, 0.0])
    assert adaptive_reward(1.0, 1.0, True, shares) == pytest.approx([1.0] * 4)
    assert adaptive_reward(0.0, 1.0, [True, False], 1.0).tolist() == [0.0, 0.0]
    assert adaptive_reward(1.0, 0.0, True, 0.0) == 0.0
    with pytest.raises(ConfigError):
        adaptive_reward(1.0, 1.0, True, 0.0, alpha=0.0)


def test_a_set_earns_its_f1_less_its_extras():
    right = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    chosen = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], bool)
    assert set_reward(chosen, right, extra=0.1) == pytest.approx([1.0, 0.5 - 0.2, 1.0, 0.0 - 0.1])
    with pytest.raises(ShapeError):
        set_reward(chosen, right[:2])


def test_cost_of_pass():
    assert cost_of_pass(np.array([1.0, 3.0]), np.array([1.0, 0.0])) == 4.0
    assert cost_of_pass(np.ones(2), np.zeros(2)) == float("inf")
