import numpy as np
import pytest

from polyroute.errors import ConfigError, EstimateError, NoCandidateError, ShapeError, UnknownNameError
from polyroute.policies.greedy import SMALL, Greedy, allowed_utility, best_only, first_best, take
from polyroute.types import Estimate, Objective

RNG = np.random.default_rng(0)
GOAL = Objective({"quality": 1.0, "cost": -100.0})


def table(quality, cost=None):
    quality = np.array(quality, dtype=float)
    return {"quality": Estimate(quality), "cost": Estimate(np.zeros_like(quality) if cost is None else np.array(cost))}


def test_the_best_allowed_by_utility_is_taken():
    rng = np.random.default_rng(1)
    quality, cost, allowed = rng.random((50, 6)), rng.random((50, 6)) * 0.01, rng.random((50, 6)) < 0.5
    allowed[:, 0] = True
    index, weight, propensity = Greedy().decide(table(quality, cost), GOAL, allowed, RNG)
    for i in range(50):
        utility = {j: quality[i, j] - 100 * cost[i, j] for j in range(6) if allowed[i, j]}
        assert index[i, 0] == max(utility, key=utility.get)
        assert weight[i, 0] == pytest.approx(max(utility.values()))
    assert propensity is None


def test_one_row_as_plain_numbers_chooses_as_in_a_table():
    rng = np.random.default_rng(2)
    values = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, 1.0, 2.0])
    for m in (1, 3, SMALL, SMALL + 1):
        for _ in range(50):
            quality, allowed = rng.choice(values, (1, m)), rng.random((1, m)) < 0.7
            quality[0, 0], allowed[0, 0] = 0.5, True
            one = Greedy().decide(table(quality), GOAL, allowed, RNG)
            two = Greedy().decide(table(np.repeat(quality, 2, axis=0)), GOAL, np.repeat(allowed, 2, axis=0), RNG)
            assert one.index.tolist() == two.index[:1].tolist()
            assert one.weight.tolist() == two.weight[:1].tolist()
    for value in (np.nan, np.inf):
        assert first_best([0.1, value, 0.2], [True, True, True]) is None
        assert first_best([0.1, value, 0.2], [True, False, True]) == 2
    assert first_best([-np.inf], [True]) is None


def test_ties_go_to_the_first_column_for_any_k():
    estimates, allowed = table([[0.5, 0.7, 0.7, 0.7]]), np.array([[True, False, True, True]])
    assert Greedy().decide(estimates, GOAL, allowed, RNG).index.tolist() == [[2]]
    assert Greedy(2).decide(estimates, GOAL, allowed, RNG).index.tolist() == [[2, 3]]


def test_k_best_come_in_order_and_places_left_hold_minus_one():
    estimates = table([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    index, weight, _ = Greedy(5).decide(estimates, GOAL, np.array([[True, True, True], [True, False, True]]), RNG)
    assert index.tolist() == [[1, 2, 0], [2, 0, -1]]
    assert weight.tolist() == [[0.9, 0.5, 0.1], [0.5, 0.1, 0.0]]


def test_probabilities_are_those_of_the_choice():
    estimates, allowed = table([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5]]), np.array([[True, True, True], [True, False, True]])
    assert Greedy().probabilities(estimates, GOAL, allowed).tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_estimate_that_cannot_be_weighed_is_named(value):
    estimates = table([[0.1, 0.2], [0.3, 0.4]], cost=[[0.0, 0.0], [0.0, value]])
    allowed = np.ones((2, 2), bool)
    with pytest.raises(EstimateError, match=r"estimates\['cost'\]\[1, 1\]: expected a finite number") as caught:
        Greedy().decide(estimates, Objective({"quality": 1.0, "cost": 1.0}), allowed, RNG)
    assert (caught.value.metric, caught.value.row, caught.value.column) == ("cost", 1, 1)


def test_nan_where_it_is_not_allowed_or_not_weighed_does_no_harm():
    estimates = table([[0.1, np.nan, 0.3]], cost=[[np.nan, np.nan, np.nan]])
    index = Greedy().decide(estimates, Objective({"quality": 1.0}), np.array([[True, False, True]]), RNG).index
    assert index.tolist() == [[2]]


def test_an_overflowing_utility_is_an_error_and_not_a_choice():
    with pytest.raises(EstimateError, match="utility"), np.errstate(over="ignore"):
        Greedy().decide(table([[1e300]]), Objective({"quality": 1e300}), np.ones((1, 1), bool), RNG)


def test_an_infinitely_dear_candidate_is_just_not_chosen():
    assert Greedy().decide(table([[0.9, 0.1]], [[np.inf, 0.0]]), GOAL, np.ones((1, 2), bool), RNG).index == [[1]]


@pytest.mark.parametrize("allowed", [np.zeros((1, 2), bool), np.zeros((1, 0), bool)])
def test_a_row_that_allows_nobody_is_an_error(allowed):
    with pytest.raises(NoCandidateError, match="row 0"):
        Greedy().decide(table(np.zeros(allowed.shape)), GOAL, allowed, RNG)


def test_shapes_and_names_must_fit():
    with pytest.raises(ShapeError, match=r"allowed: expected shape \(1, 2\), got \(1, 3\)"):
        Greedy().decide(table([[0.1, 0.2]]), GOAL, np.ones((1, 3), bool), RNG)
    with pytest.raises(UnknownNameError, match=r"Unknown metric 'latencies'.*Did you mean 'latency'"):
        Greedy().decide({"latency": Estimate(np.ones((1, 1)))}, Objective({"latencies": -1.0}), np.ones((1, 1)), RNG)
    with pytest.raises(ConfigError, match="k: expected 1 or more, got 0"):
        Greedy(0)


def test_what_the_other_policies_use():
    utility = allowed_utility(table([[0.1, 0.9]]), GOAL, np.array([[True, False]]))
    assert utility.tolist() == [[0.1, -np.inf]]
    assert best_only(np.array([[0.0, 1.0, 1.0]])).tolist() == [[0, 1, 0]]
    assert take(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[2, 0], [1, 1]])).tolist() == [[3, 1], [5, 5]]


@pytest.mark.parametrize("k", [1.5, float("nan")])
def test_a_share_of_a_choice_is_refused(k):
    with pytest.raises(ConfigError, match="k: expected"):
        Greedy(k)
