"""Expected F1 against every outcome counted, and sets that follow from it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from polyroute.errors import ConfigError, EstimateError, ShapeError
from polyroute.policies.expected_f1 import ExpectedF1, count_odds, expected_f1
from polyroute.types import Estimate, Objective


def counted(chance, size):
    """Expected F1 of the likeliest `size`, over all 2^m worlds."""
    order = np.argsort(-chance)
    total = 0.0
    for world in product([0, 1], repeat=len(chance)):
        odds = np.prod([p if w else 1 - p for p, w in zip(chance, world, strict=True)])
        hits = sum(world[j] for j in order[:size])
        total += odds * 2 * hits / (size + sum(world))
    return total


def test_it_equals_the_count_over_all_worlds():
    chance = np.random.default_rng(0).random((5, 6))
    found = expected_f1(chance, 4)
    for i, row in enumerate(chance):
        assert found[i] == pytest.approx([counted(row, j) for j in (1, 2, 3, 4)])


def test_counts_of_equal_events_are_binomial():
    assert count_odds(np.full((1, 3), 0.5))[0] == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8])
    assert count_odds(np.zeros((2, 0))).tolist() == [[1.0], [1.0]]


def decide(chance, allowed=None, **settings):
    chance = np.array(chance)
    allowed = np.ones(chance.shape, bool) if allowed is None else np.array(allowed)
    goal, rng = Objective({"quality": 1.0}), np.random.default_rng(0)
    return ExpectedF1(**settings).decide({"quality": Estimate(chance)}, goal, allowed, rng)


def test_the_set_is_as_large_as_it_pays():
    index = decide([[0.9, 0.05, 0.05], [0.1, 0.8, 0.8], [0.6, 0.5, 0.55]]).index
    assert index.tolist() == [[0, -1, -1], [1, 2, -1], [0, 2, 1]]


def test_nobody_reaches_the_bar_then_the_query_is_out_of_scope():
    found = decide([[0.2, 0.1], [0.3, 0.1]], out_of_scope=0.25)
    assert found.index[0].tolist() == [-1, -1]
    assert found.index[1, 0] == 0
    assert found.weight[0].tolist() == [0.0, 0.0]


def test_who_is_not_allowed_is_not_chosen_and_k_caps():
    assert decide([[0.9, 0.8, 0.7]], allowed=[[False, True, True]]).index.tolist() == [[1, 2, -1]]
    assert decide([[0.9, 0.9, 0.9]], k=2).index.shape == (1, 2)
    assert decide([[0.0, 0.0]], allowed=[[False, False]]).index.tolist() == [[-1, -1]]


def test_what_is_no_probability_is_an_error():
    with pytest.raises(EstimateError, match="quality"):
        decide([[1.2, 0.1]])
    with pytest.raises(EstimateError, match="quality"):
        decide([[np.nan, 0.1]])
    with pytest.raises(ShapeError, match="allowed"):
        decide([[0.5, 0.1]], allowed=[[True]])
    with pytest.raises(ConfigError, match="k"):
        ExpectedF1(k=0)
    with pytest.raises(ConfigError, match="out_of_scope"):
        ExpectedF1(out_of_scope=2.0)
