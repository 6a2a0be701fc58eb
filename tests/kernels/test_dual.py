import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels.dual import budget_price, dual_bound, dual_prices, dual_step, efficient_steps
from tests.conftest import BACKENDS


def linear_programme(scores, use, limit):
    """Value and prices of: choose one column a row, fractions allowed, within the limits."""
    n, m = scores.shape
    one_each = np.kron(np.eye(n), np.ones(m))
    resources = np.broadcast_to(use, (n, m, len(limit))).reshape(n * m, -1).T
    solved = linprog(-scores.ravel(), A_ub=resources, b_ub=limit, A_eq=one_each, b_eq=np.ones(n), method="highs")
    assert solved.success
    return -solved.fun, -solved.ineqlin.marginals


def dual_value(price, scores, use, limit):
    """Upper bound on the programme's value that a price proves; equal to it at the right price."""
    return (scores - (use * price).sum(axis=-1)).max(axis=1).sum() + (price * limit).sum()


def test_a_step_moves_by_the_excess_and_stops_at_zero():
    assert dual_step(1.0, 3.0, 2.0, rate=0.1) == pytest.approx(1.1)
    assert dual_step(1.0, 0.0, 2.0, rate=0.1) == pytest.approx(0.8)
    assert dual_step(0.1, 0.0, 2.0, rate=0.1) == 0.0


@pytest.mark.parametrize("asarray", BACKENDS)
def test_a_step_is_the_same_on_arrays(asarray):
    price, use, limit = np.array([0.0, 0.1, 2.0]), np.array([4.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    moved = np.asarray(dual_step(asarray(price), asarray(use), asarray(limit), rate=0.5))
    np.testing.assert_allclose(moved, [dual_step(*row, rate=0.5) for row in zip(price, use, limit, strict=True)])
    assert moved.tolist() == [1.5, 0.0, 2.0]


def test_mean_excess_is_bounded_by_the_last_price_on_any_traffic():
    use = np.random.default_rng(0).lognormal(size=500) * np.where(np.arange(500) < 250, 1.0, 4.0)
    price, rate, limit = 0.0, 0.05, 1.5
    for each in use:
        price = dual_step(price, float(each), limit, rate=rate)
    assert use.mean() - limit <= price / (rate * len(use)) + 1e-12


@pytest.mark.parametrize("asarray", BACKENDS)
def test_a_budget_gets_the_price_of_the_linear_programme(asarray):
    rng = np.random.default_rng(1)
    scores, cost = rng.random((60, 4)), rng.lognormal(size=(60, 4))
    limit = np.array([0.9 * cost.min(axis=1).sum() + 0.1 * cost.max(axis=1).sum()])
    use = cost[:, :, None]
    value, exact = linear_programme(scores, use, limit)
    price = np.asarray(dual_prices(asarray(scores), asarray(use), asarray(limit)))
    assert exact[0] > 0.05  # the budget binds
    np.testing.assert_allclose(price, exact, rtol=0.03)
    assert value - 1e-9 <= dual_value(price, scores, use, limit) <= 1.001 * value


@pytest.mark.parametrize("asarray", BACKENDS)
def test_capacities_get_the_prices_of_the_linear_programme(asarray):
    scores = np.random.default_rng(2).random((60, 3)) + np.array([0.8, 0.0, 0.0])
    use, limit = np.eye(3)[None], np.array([15.0, 20.0, 40.0])
    value, _ = linear_programme(scores, use, limit)
    price = np.asarray(dual_prices(asarray(scores), asarray(use), asarray(limit)))
    assert value - 1e-9 <= dual_value(price, scores, use, limit) <= 1.002 * value
    assert price[0] > 0.3
    assert price[2] == 0.0
    assert np.abs(np.bincount((scores - price).argmax(axis=1), minlength=3) - [15, 20, 25]).max() <= 2


def test_no_split_of_rows_beats_the_value_a_price_proves():
    rng = np.random.default_rng(3)
    scores, cost = rng.random((5, 3)), rng.random((5, 3))
    limit = np.array([0.6 * cost.mean(axis=1).sum()])
    price = dual_prices(scores, cost[:, :, None], limit)
    rows = np.arange(5)
    plans = [np.array(plan) for plan in itertools.product(range(3), repeat=5)]
    best = max(scores[rows, plan].sum() for plan in plans if cost[rows, plan].sum() <= limit[0])
    assert best <= dual_value(price, scores, cost[:, :, None], limit) <= best + 0.5


def test_what_does_not_bind_has_no_price_and_the_forbidden_are_not_taken():
    scores = np.array([[1.0, 0.0], [0.5, -np.inf]])
    assert dual_prices(scores, np.eye(2)[None], np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_wrong_shapes_and_steps_are_refused():
    with pytest.raises(ShapeError, match=r"use: expected shape \(2, 3, 1\), got \(2, 4, 1\)"):
        dual_prices(np.zeros((2, 3)), np.zeros((2, 4, 1)), np.ones(1))
    with pytest.raises(ConfigError, match="steps: expected 1 or more"):
        dual_prices(np.zeros((2, 3)), np.zeros((2, 3, 1)), np.ones(1), steps=0)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_steps_are_the_choices_some_price_makes_best(asarray):
    rng = np.random.default_rng(6)
    scores, cost = rng.random((30, 5)), rng.lognormal(size=(30, 5))
    steps = efficient_steps(asarray(scores), asarray(cost))
    column, price = np.asarray(steps.column), np.asarray(steps.price)
    assert (np.diff(price, axis=1) <= 1e-12).all()
    for trade in (0.0, 0.05, 0.2, 1.0, 50.0):
        count = (price > trade).sum(axis=1)
        assert column[np.arange(30), count].tolist() == (scores - trade * cost).argmax(axis=1).tolist()
    total = np.asarray(steps.cost)[:, None] + np.cumsum(np.asarray(steps.more), axis=1)
    np.testing.assert_allclose(total, np.take_along_axis(cost, column[:, 1:], axis=1))
    gained = np.take_along_axis(scores, column[:, :1], axis=1) + np.cumsum(np.asarray(steps.gain), axis=1)
    np.testing.assert_allclose(gained, np.take_along_axis(scores, column[:, 1:], axis=1))


@pytest.mark.parametrize("asarray", BACKENDS)
def test_the_budget_price_is_that_of_the_linear_programme(asarray):
    rng = np.random.default_rng(7)
    scores, cost = rng.random((50, 4)), rng.lognormal(size=(50, 4))
    for share in (0.02, 0.1, 0.4, 0.8):
        limit = (1 - share) * cost.min(axis=1).sum() + share * cost[np.arange(50), scores.argmax(axis=1)].sum()
        value, exact = linear_programme(scores, cost[:, :, None], np.array([limit]))
        price = budget_price(efficient_steps(asarray(scores), asarray(cost)), float(limit))
        assert price == pytest.approx(exact[0])
        parts = [asarray(a) for a in (np.array([price]), scores, cost[:, :, None], np.array([limit]))]
        assert float(dual_bound(*parts)) == pytest.approx(value)


def test_a_budget_that_holds_everything_is_free_and_one_that_holds_nothing_has_no_price():
    scores, cost = np.array([[0.2, 0.9, -np.inf], [0.5, 0.5, 0.4]]), np.array([[1.0, 2.0, 0.1], [1.0, 1.0, 0.5]])
    steps = efficient_steps(scores, cost)
    assert steps.cost.tolist() == [1.0, 0.5]
    assert steps.column.tolist() == [[0, 1, 1], [2, 0, 0]]
    np.testing.assert_allclose(steps.price, [[0.7, 0.0], [0.2, 0.0]])
    assert budget_price(steps, 3.0) == 0.0
    assert budget_price(steps, 2.9) == pytest.approx(0.2)
    assert budget_price(steps, 1.5) == pytest.approx(0.7)
    assert budget_price(steps, 1.4) == np.inf


def test_one_candidate_leaves_no_step():
    steps = efficient_steps(np.ones((3, 1)), np.full((3, 1), 2.0))
    assert steps.price.shape == (3, 0)
    assert budget_price(steps, 6.0) == 0.0
