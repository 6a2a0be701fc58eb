from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError, ShapeError
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix, Together, nonnegative
from polyroute.types import Estimate
from tests.routers.tables import toy


class Said:
    """A router that says what it is given, whatever is asked."""

    def __init__(self, mean, std=None, metric="quality"):
        self.mean, self.std, self.metric = np.asarray(mean, float), std, metric

    def fit(self, outcomes):
        return self

    def predict(self, queries, pool):
        return {self.metric: Estimate(self.mean, self.std)}


def test_the_mean_is_weighted_and_disagreement_is_doubt():
    mix = Mix([Constant("quality", 0.2, 0.1), Constant("quality", 0.8, 0.3)], [1, 3])
    mean, std = mix.predict(toy(2).queries, toy().pool)["quality"]
    np.testing.assert_allclose(mean, 0.65)
    variance = 0.25 * (0.01 + 0.45**2) + 0.75 * (0.09 + 0.15**2)
    np.testing.assert_allclose(std, np.sqrt(variance))


def test_a_member_without_doubt_leaves_the_mix_without():
    assert (
        Mix([Said([[0.5]]), Constant("quality", 0.5, 0.1)]).predict(toy(1).queries, toy().pool[:1])["quality"].std
        is None
    )


def test_each_metric_is_averaged_over_those_who_speak_of_it():
    mix = Mix([Constant("quality", 0.2, 0.1), Constant("cost", 3.0, 0.1), Constant("quality", 0.8, 0.1)], [1, 5, 0])
    estimates = mix.predict(toy(1).queries, toy().pool[:1])
    assert {name: e.mean.item() for name, e in estimates.items()} == pytest.approx({"quality": 0.2, "cost": 3.0})
    silent = Mix([Constant("quality", 0.2, 0.1), Constant("cost", 3.0, 0.1)], [1, 0])
    assert silent.predict(toy(1).queries, toy().pool[:1])["cost"].mean.item() == 3.0


def brute_force(gram, target):
    """The best over all sets of positive weights."""
    best, value = np.zeros(len(target)), 0.0
    for chosen in product([False, True], repeat=len(target)):
        on = np.array(chosen)
        w = np.zeros(len(target))
        if on.any():
            w[on] = np.linalg.lstsq(gram[np.ix_(on, on)], target[on], rcond=None)[0]
        found = 0.5 * w @ gram @ w - target @ w
        if (w >= -1e-12).all() and found < value - 1e-12:
            best, value = w, found
    return best


@pytest.mark.parametrize("seed", range(30))
def test_nonnegative_least_squares_is_the_best_of_all_supports(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 5)) + 0.5, rng.normal(size=12)
    np.testing.assert_allclose(nonnegative(x.T @ x, x.T @ y), brute_force(x.T @ x, x.T @ y), atol=1e-8)


def test_nonnegative_bears_equal_and_useless_columns():
    x = np.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0]])
    w = nonnegative(x.T @ x, x.T @ np.array([1.0, 2.0]))
    np.testing.assert_allclose(x @ w, [1.0, 2.0])
    assert w[2] == 0
    assert nonnegative(x.T @ x, -np.ones(3)).tolist() == [0, 0, 0]


def test_weighing_finds_the_mixture_the_outcomes_came_from():
    table, rng = toy(60, missing=0.1), np.random.default_rng(0)
    first, second, noise = (rng.random((60, 4)) for _ in range(3))
    table.values["quality"][:] = 0.3 * first + 0.7 * second
    mix = Mix([Said(first), Said(second), Said(noise)]).weigh(table)
    np.testing.assert_allclose(mix.weights, [0.3, 0.7, 0.0], atol=1e-8)


def test_weighing_where_nothing_helps_keeps_the_speakers_equal():
    table = toy(60)
    table.values["quality"][:] = -1.0
    said = Said(np.ones((60, 4)))
    assert Mix([said, Constant("cost", 1.0, 0.1), said]).weigh(table).weights.tolist() == [0.5, 0.0, 0.5]


def test_weighing_needs_held_out_outcomes():
    empty = toy(5)
    empty.observed[:] = False
    with pytest.raises(OutcomesError, match="held-out"):
        Mix([Constant("quality", 0.5, 0.1)]).weigh(empty)


def test_together_merges_metrics_and_refuses_two_of_one():
    queries, pool = toy(2).queries, toy().pool
    both = Together([Constant("quality", 0.5, 0.1), Constant("cost", 1e-3, 1e-4)])
    assert list(both.predict(queries, pool)) == ["quality", "cost"]
    with pytest.raises(ConfigError, match="quality"):
        Together([Constant("quality", 0.5, 0.1)] * 2).predict(queries, pool)


def test_updates_reach_the_members_that_learn_from_what_came():
    table, router = toy(), Together([KNN(5), Linear("cost", tokens="linear"), Said(np.ones((9, 4)), metric="joy")])
    router.fit(table)
    only_cost = toy(30, seed=2)
    before = router.predict(toy(9, seed=1).queries, table.pool)
    router.update(
        type(table)(only_cost.queries, only_cost.pool, {"cost": only_cost.values["cost"]}, only_cost.observed)
    )
    after = router.predict(toy(9, seed=1).queries, table.pool)
    assert (after["quality"].mean == before["quality"].mean).all()
    assert (after["cost"].mean != before["cost"].mean).any()


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [np.nan, 1], [np.inf, 1]])
def test_weights_must_weigh(weights):
    with pytest.raises(ConfigError, match="weights"):
        Mix([Constant("quality", 0.5, 0.1)] * 2, weights)


def test_there_is_one_weight_a_router_and_at_least_one_router():
    with pytest.raises(ShapeError, match="weights"):
        Mix([Constant("quality", 0.5, 0.1)] * 2, [1.0])
    for empty in (Mix, Together):
        with pytest.raises(ConfigError, match="at least one"):
            empty([])
