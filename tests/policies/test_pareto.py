"""Never a dominated one; all weight on one metric gives its best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyroute.errors import ConfigError, NoCandidateError, UnknownNameError
from polyroute.policies.pareto import Pareto, pareto_set, topsis
from polyroute.types import Estimate, Objective

BOTH = Objective({"quality": 1.0, "cost": -1.0})
RNG = np.random.default_rng(0)


def choose(quality, cost, weight, allowed=None, objective=BOTH):
    quality, cost = np.atleast_2d(quality), np.atleast_2d(cost)
    allowed = np.ones(quality.shape, bool) if allowed is None else np.atleast_2d(allowed)
    policy = Pareto({"quality": weight, "cost": 1 - weight})
    return policy.decide({"quality": Estimate(quality), "cost": Estimate(cost)}, objective, allowed, RNG).index[:, 0]


def test_by_hand():
    quality, cost = [0.9, 0.8, 0.5, 0.45], [10.0, 2.0, 1.0, 5.0]  # the last is beaten by all but the first
    assert pareto_set(np.stack([[quality], -np.array([cost])], axis=2), np.ones((1, 4), bool)).tolist() == [
        [True, True, True, False]
    ]
    assert choose(quality, cost, 1.0) == [0]
    assert choose(quality, cost, 0.5) == [1]
    assert choose(quality, cost, 0.0) == [2]
    closeness = topsis(np.array([[[1.0, 0.0], [0.75, 0.5], [0.0, 1.0]]]), np.array([0.5, 0.5]), np.ones((1, 3), bool))
    near, far = np.hypot(0.25, 0.5), np.hypot(0.75, 0.5)
    assert closeness[0] == pytest.approx([0.5, far / (near + far), 0.5])


@given(
    arrays(float, (3, 6), elements=st.sampled_from([0.0, 0.2, 0.4, 0.7, 1.0])),
    arrays(float, (3, 6), elements=st.sampled_from([0.0, 1e-4, 3e-4, 0.01])),
    arrays(bool, (3, 6)),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_a_dominated_one_is_never_chosen(quality, cost, allowed, weight):
    allowed[:, 2] = True
    chosen = choose(quality, cost, weight, allowed)
    for i, j in enumerate(chosen):
        assert allowed[i, j]
        for k in np.flatnonzero(allowed[i]):
            better = quality[i, k] >= quality[i, j] and cost[i, k] <= cost[i, j]
            assert not (better and (quality[i, k] > quality[i, j] or cost[i, k] < cost[i, j]))
        if weight == 1.0:
            assert quality[i, j] == quality[i, allowed[i]].max()
        if weight == 0.0:
            assert cost[i, j] == cost[i, allowed[i]].min()


def test_units_do_not_matter_and_a_dominated_newcomer_changes_nothing():
    rng = np.random.default_rng(1)
    quality, cost = rng.random((50, 5)), rng.random((50, 5))
    first = choose(quality, cost, 0.4)
    assert (choose(quality / 7 + 0.1, 1e-6 * cost + 3, 0.4) == first).all()
    worse = choose(
        np.hstack([quality, quality.min(1, keepdims=True) - 0.1]), np.hstack([cost, cost.max(1)[:, None] + 1]), 0.4
    )
    assert (worse == first).all()


def test_the_sign_in_the_objective_says_which_way_is_better():
    assert choose([0.9, 0.1], [1.0, 1.0], 1.0, objective=Objective({"quality": -1.0})) == [1]
    assert choose([0.5, 0.5], [1.0, 2.0], 0.5, objective=Objective({"quality": 1.0})) == [0]


def test_equal_candidates_the_first_is_taken():
    assert choose([0.5, 0.5, 0.5], [1.0, 1.0, 1.0], 0.5) == [0]


def test_its_probabilities_are_its_choices_and_errors_are_those_of_every_policy():
    estimates = {"quality": Estimate(np.array([[0.5, 0.9]])), "cost": Estimate(np.array([[0.1, 0.9]]))}
    allowed = np.ones((1, 2), bool)
    assert Pareto({"quality": 1.0}).probabilities(estimates, BOTH, allowed).tolist() == [[0.0, 1.0]]
    with pytest.raises(NoCandidateError):
        Pareto().decide(estimates, BOTH, ~allowed, RNG)
    with pytest.raises(UnknownNameError, match="latency"):
        Pareto({"latency": 1.0}).decide(estimates, BOTH, allowed, RNG)
    for wrong in ({}, {"quality": 0.0}, {"quality": -1.0}):
        with pytest.raises(ConfigError, match="weights"):
            Pareto(wrong)
