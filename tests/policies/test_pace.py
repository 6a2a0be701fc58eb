import numpy as np
import pytest

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.kernels.dual import budget_price, efficient_steps
from polyroute.policies.budget import Budget, BudgetConfig, stacked
from polyroute.policies.deadline import Deadline
from polyroute.policies.explore import Epsilon
from polyroute.policies.pace import Pace, row_steps
from polyroute.types import Estimate, Objective, Selection
from tests.policies.test_budget import GOAL, RNG, row, serve, traffic


def test_a_row_has_the_steps_of_the_kernel():
    rng = np.random.default_rng(0)
    scores, cost = rng.random((40, 6)).round(1), rng.random((40, 6)).round(1)
    scores[rng.random((40, 6)) < 0.2] = -np.inf
    scores[:, 2] = 0.5
    every = efficient_steps(scores, cost)
    for i in range(40):
        cheapest, steps = row_steps(scores[i].tolist(), cost[i].tolist())
        found = every.price[i] > 0
        assert cheapest == every.cost[i]
        np.testing.assert_allclose(np.array(steps).reshape(-1, 2), np.stack([every.price[i], every.more[i]], 1)[found])


def test_the_first_price_is_the_exact_one_of_what_was_learned():
    quality, cost = traffic(150)
    pace = Pace(0.002)
    pace.learn(quality, cost)
    assert pace.price() == pytest.approx(budget_price(efficient_steps(quality, cost), 150 * 0.002))


def paced(limit, quality, cost, paid=None, tolerance=0.01):
    """Spend of each request, and the quality earned."""
    budget = Budget(BudgetConfig(limit=limit, tolerance=tolerance))
    spends, earned, allowed = [], [], np.ones((1, quality.shape[1]), bool)
    for i in range(len(quality)):
        j = budget.decide(row(quality[i], cost[i]), GOAL, allowed, RNG).index.item()
        spends.append(float((cost if paid is None else paid)[i, j]))
        earned.append(quality[i, j])
        budget.spent(spends[-1])
    return np.array(spends), np.mean(earned)


def windows(spends, limit, size=1000):
    """Spend of every window of requests over its limit, less 1."""
    total = np.concatenate([[0.0], np.cumsum(spends)])
    return (total[size:] - total[:-size]) / (size * limit) - 1


def bound_of(limit, quality, cost):
    """Mean quality of the linear programme that knows all requests beforehand."""
    price = budget_price(efficient_steps(quality, cost), limit * len(quality))
    return (quality - price * cost).max(axis=1).mean() + price * limit


@pytest.mark.parametrize("limit", [0.001, 0.005])
def test_every_window_spends_its_limit(limit):
    quality, cost = traffic(3000)
    spends, earned = paced(limit, quality, cost)
    missed = windows(spends, limit)
    assert np.abs(missed).max() <= 0.02
    assert missed.max() <= 0.01
    assert (np.abs(missed) <= 0.01).mean() >= 0.9
    assert earned >= 0.98 * bound_of(limit, quality, cost)


def test_a_wider_tolerance_buys_what_the_linear_programme_buys():
    quality, cost = traffic(3000)
    spends, earned = paced(0.002, quality, cost, tolerance=0.1)
    assert earned >= 0.995 * bound_of(0.002, quality, cost)
    assert np.abs(windows(spends, 0.002)).max() <= 0.1


@pytest.mark.parametrize("order", ["dear last", "calm, then all want the dear", "reversed"])
def test_no_order_of_requests_overspends_a_window(order):
    quality, cost = traffic(3000)
    if order == "calm, then all want the dear":
        quality[:1500, 1:] = 0.0
        quality[1500:, 2] = 1.0
    else:
        by_gain = np.argsort(quality[:, 2] - quality[:, 0])
        quality, cost = quality[by_gain], cost[by_gain]
        if order == "reversed":
            quality, cost = quality[::-1], cost[::-1]
    spends, _ = paced(0.002, quality, cost)
    assert windows(spends, 0.002).max() <= 0.01 + 1e-9


def test_costs_that_are_estimated_too_low_are_still_paid_from_the_budget():
    quality, cost = traffic(3000)
    spends, _ = paced(0.002, quality, cost, paid=1.5 * cost)
    assert np.abs(windows(spends, 0.002)).max() <= 0.02


def test_what_no_choice_prevents_is_spent_and_then_forgotten():
    quality, cost = traffic(3000)
    cost[:500] = 0.01  # nothing cheaper is to be had
    spends, _ = paced(0.002, quality, cost)
    assert windows(spends, 0.002)[0] > 1.0
    assert spends[1600:].mean() == pytest.approx(0.002, rel=0.02)


def test_room_counts_the_window_and_nothing_older():
    pace = Pace(1.0, window=10, tolerance=0.2)  # 2 limits of slack
    assert pace.room() == pytest.approx(2.0)
    for _ in range(3):
        pace.spent(0.5)
    assert pace.surplus == -1.5
    assert pace.room() == pytest.approx(3.0)  # from the low: 2 limits and this one
    for _ in range(8):
        pace.spent(1.0)
    assert pace.room() == pytest.approx(3.0)
    pace.spent(3.0)
    assert pace.room() == pytest.approx(1.0)
    for _ in range(20):
        pace.spent(5.0)
    assert pace.surplus == 2.0
    assert pace.room() < 0


def test_a_window_that_has_fallen_short_lowers_the_price_and_is_forgotten_when_it_has_passed():
    quality, cost = traffic(150)
    pace = Pace(0.002, window=100, tolerance=0.1)  # 10 limits of slack, 7 of them free
    pace.learn(quality, cost)
    plain = pace._level - pace._slope * 6.0
    for _ in range(6):
        pace.spent(0.0)
    assert pace.price() == pytest.approx(plain)
    assert pace.price(ahead=-3.0) == pytest.approx(pace._level - pace._slope * (9.0 + 2.0))
    for _ in range(3):
        pace.spent(0.0)
    assert pace.price() == pytest.approx(pace._level - pace._slope * (9.0 + 2.0))
    for _ in range(100):
        pace.spent(0.002)
    assert pace.price() == pytest.approx(pace._level - pace._slope * 9.0)


def test_a_batch_is_priced_row_by_row_as_if_estimates_will_be_paid():
    quality, cost = traffic(300, seed=4)
    batch, single = (Budget(BudgetConfig(limit=0.002, tolerance=0.01)) for _ in range(2))
    together = batch.decide(row(quality, cost), GOAL, np.ones(quality.shape, bool), RNG)
    one = []
    for q, c in zip(quality, cost, strict=True):
        one.append(single.decide(row(q, c), GOAL, np.ones((1, 3), bool), RNG).index.item())
        single.spent(c[one[-1]])
    spent = np.take_along_axis(cost, together.index, axis=1)
    assert (together.index[:, 0] == one).mean() > 0.9
    assert spent.sum() == pytest.approx(300 * 0.002, rel=0.05)


def test_an_inner_policy_keeps_its_odds_and_its_other_candidates():
    budget = Budget(BudgetConfig(limit=1.0, tolerance=0.01), inner=Deadline(1.0, inner=Epsilon(0.5)))
    estimates = {**row([0.5, 0.9, 0.99], [0.1, 0.2, 0.1]), "latency": Estimate(np.array([[0.1, 0.1, 9.0]]))}
    seen = set()
    for seed in range(40):
        chosen = budget.decide(estimates, GOAL, np.ones((1, 3), bool), np.random.default_rng(seed))
        seen.add((chosen.index.item(), chosen.propensity.item()))
    assert seen == {(0, 0.25), (1, 0.75)}


def test_selections_of_different_width_are_filled_up():
    one = Selection(np.array([[1]]), np.array([[0.5]]), np.array([[0.25]]))
    two = Selection(np.array([[0, 2]]), np.array([[0.9, 0.1]]))
    both = stacked([one, two])
    assert both.index.tolist() == [[1, -1], [0, 2]]
    assert both.propensity.tolist() == [[0.25, 1.0], [1.0, 1.0]]
    assert stacked([]).index.shape == (0, 1)


def test_nobody_allowed_is_an_error_and_arguments_are_checked():
    budget = Budget(BudgetConfig(limit=1.0, tolerance=0.01))
    with pytest.raises(NoCandidateError):
        budget.decide(row([0.5], [0.1]), GOAL, np.zeros((1, 1), bool), RNG)
    for bad in ({"limit": 0.0}, {"window": 0}, {"tolerance": 0.0}, {"memory": 0}):
        with pytest.raises(ConfigError):
            Pace(**{"limit": 1.0, **bad})
    with pytest.raises(ConfigError, match="tolerance"):
        BudgetConfig(limit=1.0, tolerance=2.0)
    with pytest.raises(ShapeError, match="cost"):
        Pace(1.0).learn(np.zeros((2, 3)), np.zeros((2, 2)))


def test_a_loose_limit_has_no_price():
    quality, cost = traffic(200)
    budget = Budget(BudgetConfig(limit=1.0, tolerance=0.01))
    serve(budget, quality, cost)
    assert budget.price == 0.0
    assert not budget.exhausted
    dear = Objective({"quality": 1.0, "cost": -1e6})
    chosen = budget.decide(row(quality[:4], cost[:4]), dear, np.ones((4, 3), bool), RNG)
    assert chosen.index.ravel().tolist() == (quality[:4] - 1e6 * cost[:4]).argmax(axis=1).tolist()
