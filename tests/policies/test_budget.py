import numpy as np
import pytest
from scipy.optimize import linprog

from polyroute.constraints import only
from polyroute.decide import decide
from polyroute.errors import ConfigError, NoCandidateError, UnknownNameError
from polyroute.policies.budget import Budget, BudgetConfig
from polyroute.policies.deadline import Deadline
from polyroute.policies.explore import Epsilon
from polyroute.types import Candidate, Estimate, Objective, Query

GOAL = Objective({"quality": 1.0})
RNG = np.random.default_rng(0)


def row(quality, cost):
    return {"quality": Estimate(np.atleast_2d(quality)), "cost": Estimate(np.atleast_2d(cost))}


def traffic(n, seed=0):
    """Quality and USD [n, 3]: dearer is better on average, by different amounts."""
    rng = np.random.default_rng(seed)
    quality = np.clip(rng.normal([0.5, 0.65, 0.8], 0.15, size=(n, 3)), 0, 1)
    return quality, np.array([0.0002, 0.001, 0.01]) * rng.lognormal(0, 0.3, size=(n, 3))


def serve(budget, quality, cost):
    allowed, chosen = np.ones((1, quality.shape[1]), bool), []
    for q, c in zip(quality, cost, strict=True):
        j = int(budget.decide(row(q, c), GOAL, allowed, RNG).index[0, 0])
        budget.spent(float(c[j]))
        chosen.append(j)
    taken = np.arange(len(chosen)), np.array(chosen)
    return quality[taken].mean(), cost[taken].mean()


@pytest.mark.parametrize("limit", [0.0006, 0.002, 0.005])
def test_spend_settles_at_the_limit_and_buys_nearly_the_best_quality(limit):
    quality, cost = traffic(6000)
    budget = Budget(BudgetConfig(limit=limit, window=100_000, rate=0.01))
    earned, spent = serve(budget, quality, cost)
    assert spent == pytest.approx(limit, rel=0.05)
    # the most any rule could earn that knew all requests beforehand and spent the same
    rows, prices = np.arange(len(quality)), np.geomspace(1, 1e4, 400)
    price = next(p for p in prices if cost[rows, (quality - p * cost).argmax(axis=1)].mean() <= spent)
    oracle = (quality - price * cost).max(axis=1).mean() + price * spent
    assert earned >= oracle - 0.02
    assert earned > quality[:, 0].mean() + 0.03  # and clearly more than the cheapest


def test_a_small_batch_reaches_the_value_of_the_linear_programme_in_the_long_run():
    quality, cost = traffic(40, seed=3)
    limit = 0.002
    one_each = np.kron(np.eye(40), np.ones(3))
    best = -linprog(-quality.ravel(), cost.ravel()[None] / 40, [limit], one_each, np.ones(40)).fun / 40
    budget = Budget(BudgetConfig(limit=limit, window=10**6, rate=0.005))
    serve(budget, np.tile(quality, (100, 1)), np.tile(cost, (100, 1)))  # learns the price
    earned, spent = serve(budget, np.tile(quality, (25, 1)), np.tile(cost, (25, 1)))
    assert spent == pytest.approx(limit, rel=0.05)
    assert earned == pytest.approx(best, abs=0.01)


def test_a_loose_limit_costs_nothing():
    quality, cost = traffic(200)
    budget = Budget(BudgetConfig(limit=1.0))
    serve(budget, quality, cost)
    assert budget.price == 0.0


def test_the_price_follows_its_step_and_has_the_unit_utility_per_usd():
    budget = Budget(BudgetConfig(limit=0.01, rate=0.1))
    budget.spent(0.03)
    assert budget.price == pytest.approx(0.1 * (0.03 / 0.01 - 1) / 0.01)
    budget.spent(0.0)
    assert budget.price == pytest.approx(0.1 * 1.0 / 0.01)
    for _ in range(3):
        budget.spent(0.0)
    assert budget.price == 0.0


def test_the_price_steers_the_choice_and_stays_out_of_the_weights():
    budget, estimates = Budget(BudgetConfig(limit=0.01, rate=0.1)), row([0.5, 0.9], [0.0, 0.03])
    before = budget.decide(estimates, Objective({"quality": 1.0, "cost": -1.0}), np.ones((1, 2), bool), RNG)
    assert (before.index.item(), before.weight.item()) == (1, pytest.approx(0.87))
    budget.spent(0.03)
    after = budget.decide(estimates, Objective({"quality": 1.0, "cost": -1.0}), np.ones((1, 2), bool), RNG)
    assert (after.index.item(), after.weight.item()) == (0, 0.5)


def test_the_inner_policy_keeps_its_odds_at_the_price():
    budget = Budget(BudgetConfig(limit=0.01, rate=0.1), inner=Deadline(1.0, inner=Epsilon(0.5)))
    budget.spent(0.03)
    estimates = {**row([0.5, 0.9, 0.99], [0.0, 0.03, 0.0]), "latency": Estimate(np.array([[0.1, 0.1, 9.0]]))}
    seen = {}
    for seed in range(60):
        chosen = budget.decide(estimates, GOAL, np.ones((1, 3), bool), np.random.default_rng(seed))
        seen[chosen.index.item()] = chosen.propensity.item()
    assert seen == {0: 0.75, 1: 0.25}  # 2 is too slow; the price makes 0 the best


def test_a_spent_window_takes_the_cheapest_until_the_next():
    budget = Budget(BudgetConfig(limit=0.01, window=4))
    estimates, allowed = row([0.5, 0.9, 0.1], [0.002, 0.003, 0.001]), np.array([[True, True, False]])
    budget.spent(0.04)
    assert budget.exhausted
    chosen = budget.decide(estimates, GOAL, allowed, RNG)
    assert (chosen.index.item(), chosen.weight.item()) == (0, 0.5)
    for _ in range(3):
        budget.spent(0.0)
    assert not budget.exhausted


def test_every_window_keeps_its_limit_whatever_the_traffic():
    quality, cost = traffic(3000, seed=1)
    budget, spends = Budget(BudgetConfig(limit=0.001, window=100)), []
    for q, c in zip(quality, cost, strict=True):
        j = budget.decide(row(q, c), GOAL, np.ones((1, 3), bool), RNG).index.item()
        spends.append(c[j])
        budget.spent(c[j])
    windows = np.array(spends).reshape(-1, 100)
    overdraft = cost.max() + 100 * cost[:, 0].max()  # the request that spent it, and the cheapest for all others
    assert (windows.sum(axis=1) <= 100 * 0.001 + overdraft).all()
    assert windows.mean() == pytest.approx(0.001, rel=0.1)


class Flat:
    """Predicts the same for everyone."""

    def fit(self, outcomes):
        return self

    def predict(self, queries, pool):
        shape = (len(queries), len(pool))
        return row(np.full(shape, 0.5), np.full(shape, 0.001))


def test_as_a_constraint_a_spent_window_leaves_the_fallback_or_nobody():
    pool, query = [Candidate("large"), Candidate("small")], [Query("q1")]
    budget = Budget(BudgetConfig(limit=0.01, window=2, fallback="small"))
    rules = [budget.within_budget, only({"large", "small"})]
    assert decide(query, pool, Flat(), budget, GOAL, rules, RNG)[0].candidate_ids == ("large",)
    budget.spent(0.02)
    assert decide(query, pool, Flat(), budget, GOAL, rules, RNG)[0].candidate_ids == ("small",)
    refusing = Budget(BudgetConfig(limit=0.01, window=2))
    refusing.spent(0.02)
    with pytest.raises(NoCandidateError, match="large by within_budget, small by within_budget"):
        decide(query, pool, Flat(), refusing, GOAL, [refusing.within_budget], RNG)
    refusing.spent(0.0)  # the refused request counts, and ends the window
    assert decide(query, pool, Flat(), refusing, GOAL, [refusing.within_budget], RNG)


def test_cost_must_be_estimated_and_spend_must_be_a_number():
    budget = Budget(BudgetConfig(limit=0.01))
    with pytest.raises(UnknownNameError, match="Unknown metric 'cost'"):
        budget.decide({"quality": Estimate(np.ones((1, 1)))}, GOAL, np.ones((1, 1), bool), RNG)
    for usd in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="usd: expected the cost of one request"):
            budget.spent(usd)
    assert budget.price == 0.0


@pytest.mark.parametrize(
    "bad", [{"limit": 0.0}, {"limit": float("nan")}, {"limit": 1.0, "window": 0}, {"limit": 1.0, "rate": 0.0}]
)
def test_settings_are_checked_when_built(bad):
    with pytest.raises(ConfigError):
        BudgetConfig(**bad)
