import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.offline.lagrange import plan_within, repaired, window_excess

METHODS = ("exact", "subgradient", "bundle", "augmented")


def programme(scores, use, limit):
    """The linear programme's value: no plan, and no lottery of plans, scores more within the limits."""
    n, m = scores.shape
    rows = np.kron(np.eye(n), np.ones(m))
    solved = linprog(-scores.ravel(), use.reshape(n * m, -1).T, limit, rows, np.ones(n), method="highs")
    assert solved.success
    return -solved.fun


def batch(seed, n=60, m=4):
    rng = np.random.default_rng(seed)
    return rng.random((n, m)), rng.lognormal(size=(n, m, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_one_budget_is_spent_as_well_as_the_linear_programme_up_to_one_row(method, share):
    scores, use = batch(1)
    low, high = use.min(axis=1).sum(), use.max(axis=1).sum()
    limit = np.array([low + share * (high - low)])
    best = programme(scores, use, limit)
    plan = plan_within(scores, use, limit, method=method)
    widest = (scores.max(axis=1) - scores.min(axis=1)).max()
    assert plan.feasible
    assert plan.use[0] <= limit[0] * (1 + 1e-9)
    assert best - (widest if method in ("exact", "bundle") else 3 * widest) <= plan.value <= best + 1e-9
    assert plan.bound >= best - 1e-7
    assert plan.gap >= -1e-7


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_bound_is_the_linear_programme_and_the_lottery_spends_the_rest(seed):
    scores, use = batch(seed)
    limit = np.array([0.7 * use.min(axis=1).sum() + 0.3 * use.max(axis=1).sum() * 0.5])
    plan = plan_within(scores, use, limit)
    best = programme(scores, use, limit)
    assert plan.bound == pytest.approx(best, rel=1e-9)
    row, column, chance = plan.lottery
    before = plan.choice[row]
    assert 0 <= chance < 1
    assert plan.use[0] + chance * (use[row, column, 0] - use[row, before, 0]) == pytest.approx(limit[0])
    assert plan.value + chance * (scores[row, column] - scores[row, before]) == pytest.approx(best)


def test_tied_prices_are_taken_until_the_budget_is_spent():
    scores, use = np.tile([0.0, 1.0], (10, 1)), np.tile([[1.0], [2.0]], (10, 1, 1))
    plan = plan_within(scores, use, np.array([13.5]))
    assert (plan.value, plan.use[0], plan.lottery.probability) == (3.0, 13.0, pytest.approx(0.5))
    assert plan.bound == pytest.approx(3.5)


@pytest.mark.parametrize("method", ["subgradient", "bundle", "augmented"])
def test_several_limits_keep_every_one_and_come_near_the_programme(method):
    rng = np.random.default_rng(5)
    scores, use = rng.random((80, 4)), rng.lognormal(sigma=0.5, size=(80, 4, 3))
    limit = 0.9 * use.mean(axis=1).sum(axis=0) * np.array([0.85, 1.0, 2.0])
    best, plan = programme(scores, use, limit), plan_within(scores, use, limit, method=method)
    assert plan.feasible
    assert (plan.use <= limit * (1 + 1e-9)).all()
    assert plan.bound >= best - 1e-7
    assert plan.value >= 0.94 * best
    if method == "bundle":
        assert plan.bound <= 1.0005 * best
        assert plan.price[2] == pytest.approx(0.0, abs=1e-6)  # a limit that does not bind has no price


@pytest.mark.parametrize("method", METHODS)
def test_no_plan_beats_the_certificate(method):
    for seed in range(6):
        scores, use = batch(seed, n=5, m=3)
        limit = np.array([0.5 * (use.min(axis=1).sum() + use.mean(axis=1).sum())])
        plan, rows = plan_within(scores, use, limit, method=method), np.arange(5)
        plans = [np.array(p) for p in itertools.product(range(3), repeat=5)]
        best = max(scores[rows, p].sum() for p in plans if use[rows, p, 0].sum() <= limit[0])
        assert plan.value - 1e-9 <= best <= plan.bound + 1e-7


def test_a_loose_limit_costs_nothing_and_an_impossible_one_is_told():
    scores, use = batch(2)
    for method in METHODS:
        plan = plan_within(scores, use, np.array([1e6]), method=method)
        assert plan.value == pytest.approx(scores.max(axis=1).sum())
        assert plan.gap == pytest.approx(0.0, abs=1e-6)
        tight = plan_within(scores, use, np.array([0.5 * use.min(axis=1).sum()]), method=method)
        assert not tight.feasible
    exact = plan_within(scores, use, np.array([0.5 * use.min(axis=1).sum()]))
    assert exact.choice.tolist() == use[:, :, 0].argmin(axis=1).tolist()


def test_what_is_ruled_out_is_not_taken():
    scores, use = batch(3)
    scores[:, 3] = -np.inf
    scores[7, :2] = -np.inf
    for method in METHODS:
        plan = plan_within(scores, use, np.array([use[:, :3, 0].mean(axis=1).sum()]), method=method)
        assert np.isfinite(plan.value)
        assert plan.feasible


def test_a_repair_moves_down_at_the_least_loss_and_fills_what_is_left():
    scores = np.array([[0.0, 0.9], [0.0, 0.5], [0.0, 0.1]])
    use = np.tile([[0.0], [1.0]], (3, 1, 1))
    assert repaired(np.array([1, 1, 1]), scores, use, np.array([2.0])).tolist() == [1, 1, 0]
    assert repaired(np.array([0, 0, 0]), scores, use, np.array([2.0])).tolist() == [1, 1, 0]


def test_wrong_arguments_are_named():
    scores, use = batch(0, n=4)
    with pytest.raises(ShapeError, match="use: expected shape"):
        plan_within(scores, use[:3], np.ones(1))
    with pytest.raises(ConfigError, match="limit: expected numbers above 0"):
        plan_within(scores, use, np.zeros(1))
    with pytest.raises(ConfigError, match="method: expected a method for several limits"):
        plan_within(scores, np.repeat(use, 2, axis=2), np.ones(2))
    with pytest.raises(UnknownNameError, match="Did you mean 'bundle'"):
        plan_within(scores, use, np.ones(1), method="bundel")


def test_every_window_is_looked_at():
    assert window_excess(np.array([1.0, 3.0, 2.0, 0.0]), 1.0, 2) == pytest.approx([1.0, 1.5, 0.0])
    assert window_excess(np.array([1.0]), 1.0, 2).shape == (0,)
