from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.frontier import (
    TRADE_OFFS,
    area,
    choose,
    cost_at,
    hull_of,
    one_price,
    quality_at,
    realised,
    reference_cost,
    scale_of,
    summarise,
)

points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12).map(
    lambda rows: (np.array(rows, float)[:, 0] / 12, np.array(rows, float)[:, 1] / 12)
)


def best_mix(cost, quality, budget):
    """The best quality of any random mix of two points (or one) whose mean cost is within a budget."""
    found = [q for c, q in zip(cost, quality, strict=True) if c <= budget]
    for i in range(len(cost)):
        for j in range(len(cost)):
            if cost[i] < budget < cost[j]:
                share = (budget - cost[i]) / (cost[j] - cost[i])
                found.append((1 - share) * quality[i] + share * quality[j])
    return max(found, default=math.nan)


@given(points, st.floats(0, 1.2))
@settings(deadline=None, max_examples=200)
def test_the_hull_is_the_best_mix_of_two_points(drawn, budget):
    cost, quality = drawn
    assert quality_at(hull_of(cost, quality), budget) == pytest.approx(best_mix(cost, quality, budget), nan_ok=True)


@given(points, st.tuples(st.integers(0, 12), st.integers(0, 12)))
@settings(deadline=None)
def test_one_more_point_never_lowers_the_area(drawn, extra):
    cost, quality = (np.append(values, last) for values, last in zip(drawn, (0.0, 0.0), strict=True))
    more = hull_of(np.append(cost, extra[0] / 12), np.append(quality, extra[1] / 12))
    assert area(more, 0.0, 1.0) >= area(hull_of(cost, quality), 0.0, 1.0) - 1e-12


@given(points)
@settings(deadline=None)
def test_the_hull_rises_bends_down_and_covers_every_point(drawn):
    cost, quality = drawn
    hull = hull_of(cost, quality)
    assert (np.diff(hull.cost) > 0).all()
    assert (np.diff(hull.quality) > 0).all()
    slope = np.diff(hull.quality) / np.diff(hull.cost)
    assert (np.diff(slope) < 1e-9).all()
    assert hull.cost[0] == cost.min()
    assert hull.quality[-1] == quality.max()
    assert (np.interp(cost, hull.cost, hull.quality) >= quality - 1e-12).all()


@given(points, st.floats(0, 1))
@settings(deadline=None)
def test_cost_and_quality_are_inverse(drawn, level):
    hull = hull_of(*drawn)
    cost = cost_at(hull, level)
    if level > hull.quality[-1] + 1e-12:
        assert math.isinf(cost)
    else:
        assert quality_at(hull, cost) == pytest.approx(max(level, hull.quality[0]))


def test_areas_known_in_closed_form():
    def of(*corners, low=0.0, high=1.0):
        return area(hull_of(*np.array(corners, float).T), low, high)

    assert of((0, 0), (1, 1)) == 0.5
    assert of((0, 0), (0.5, 1), (1, 1)) == 0.75
    assert of((0, 0), (0.5, 1), (1, 0.2)) == 0.75  # dearer and worse adds nothing
    assert of((0, 0), (0.5, 0.4), (1, 1)) == 0.5  # below the line adds nothing
    assert of((0, 0.3)) == pytest.approx(0.3)
    assert of((0, 0), (4, 1), low=1, high=3) == 0.5
    assert of((0, 0), (0.5, 1), low=1, high=2) == 1.0


def test_the_numbers_of_a_frontier_known_by_hand():
    scale = scale_of(np.array([0.2, 0.8, 0.5]), np.array([1.0, 5.0, 9.0]))
    assert scale == (1.0, 0.2, 9.0, 0.8, 5.0)
    # One point of quality 0.6 at cost 3, and the cheapest model: a line from (1, 0.2) to (3, 0.6), then flat.
    found = summarise(np.array([0.6]), np.array([3.0]), scale)
    assert found.aiq == pytest.approx((2 * 0.4 + 6 * 0.6) / 8)
    assert found.quality_25 == pytest.approx(0.2 + 0.2 * (2.25 - 1))
    assert found.quality_50 == found.quality_75 == pytest.approx(0.6)
    assert math.isinf(found.cost_95)
    better = summarise(np.array([0.8]), np.array([3.0]), scale)
    assert better.cost_100 == pytest.approx(3 / 5)
    assert better.cost_95 == pytest.approx((1 + (0.95 * 0.8 - 0.2) / 0.3) / 5)


def test_a_quality_below_the_range_of_costs_is_not_a_number():
    scale = scale_of(np.array([0.2, 0.8]), np.array([4.0, 8.0]))
    assert math.isnan(summarise(np.array([0.8]), np.array([8.0]), scale).quality_25)


def test_costs_in_another_currency_change_nothing():
    rng = np.random.default_rng(0)
    quality, cost = rng.random(20), rng.random(20) + 0.1
    singles = rng.random(4), rng.random(4) + 0.1
    usd = summarise(quality, cost, scale_of(*singles))
    yuan = summarise(quality, 7.1 * cost, scale_of(singles[0], 7.1 * singles[1]))
    np.testing.assert_allclose(usd, yuan)


def test_a_free_best_model_leaves_nothing_to_compare_costs_with():
    scale = scale_of(np.array([0.9, 0.5]), np.array([0.0, 2.0]))
    found = summarise(np.array([0.9]), np.array([0.0]), scale)
    assert found.aiq == pytest.approx(0.9)
    assert np.isnan(found.cost_100)
    free = scale_of(np.array([0.9, 0.5]), np.zeros(2))
    assert summarise(np.array([0.9]), np.array([0.0]), free).aiq == 0.9


def test_one_price_gives_the_quality_of_the_first_point():
    scale = scale_of(np.array([0.2, 0.8]), np.array([3.0, 3.0]))
    assert one_price(scale)
    found = summarise(np.array([0.6, 0.9]), np.array([3.0, 3.0]), scale)
    assert found.aiq == 0.6
    assert np.isnan(found[1:]).all()


def test_a_trade_off_moves_the_choice_from_good_to_cheap():
    quality, cost = np.array([[0.9, 0.5], [0.6, 0.55]]), np.array([[10.0, 1.0], [10.0, 1.0]])
    choices = choose(quality, cost, (0.0, 0.2, 1.0, math.inf), reference_cost=10.0)
    np.testing.assert_array_equal(choices, [[0, 0], [0, 1], [1, 1], [1, 1]])


def test_trade_offs_are_those_of_the_protocol():
    assert len(TRADE_OFFS) == 62
    assert TRADE_OFFS[0] == 0.0
    assert TRADE_OFFS[1] == pytest.approx(1e-3)
    assert TRADE_OFFS[-2] == pytest.approx(1e3)
    assert math.isinf(TRADE_OFFS[-1])


def test_lowest_cost_is_taken_even_where_it_is_negative():
    assert choose(np.array([[0.9, 0.1]]), np.array([[1.0, -0.5]]), (math.inf,), 1.0).item() == 1


def test_realised_reads_the_table():
    outcomes = synthetic_outcomes(30, 3, rng=np.random.default_rng(0)).outcomes
    choices = np.random.default_rng(1).integers(3, size=(5, 30))
    curve = realised("x", choices, outcomes)
    for p in range(5):
        for i in range(30):
            assert curve.quality[p, i] == outcomes.values["quality"][i, choices[p, i]]
            assert curve.cost[p, i] == outcomes.values["cost"][i, choices[p, i]]


def test_the_reference_cost_is_the_mean_of_the_dearest_where_observed():
    outcomes = synthetic_outcomes(30, 3, rng=np.random.default_rng(0)).outcomes
    assert reference_cost(outcomes) == pytest.approx(outcomes.values["cost"][:, 2].mean())
    outcomes.observed[10:, 2] = False
    assert reference_cost(outcomes) == pytest.approx(outcomes.values["cost"][:10, 2].mean())


def test_where_all_is_free_a_trade_off_is_stated_in_dollars():
    outcomes = synthetic_outcomes(30, 3, rng=np.random.default_rng(0)).outcomes
    outcomes.values["cost"][:] = 0.0
    assert reference_cost(outcomes) == 1.0
