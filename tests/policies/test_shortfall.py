"""The cheapest that will do, by hand and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, EstimateError, NoCandidateError, UnknownNameError
from polyroute.policies.shortfall import Shortfall
from polyroute.types import Estimate, Objective

COST = Objective({"cost": -1.0})
RNG = np.random.default_rng(0)


def estimates(short, cost, capability=None):
    found = {"shortfall": short, "cost": cost} | ({} if capability is None else {"capability": capability})
    return {name: Estimate(np.atleast_2d(np.asarray(v, float))) for name, v in found.items()}


def choose(tau, short, cost, capability=None, allowed=None):
    given = estimates(short, cost, capability)
    allowed = np.ones(given["cost"].mean.shape, bool) if allowed is None else np.atleast_2d(allowed)
    chosen = Shortfall(tau).decide(given, COST, allowed, RNG)
    best = Shortfall(tau).probabilities(given, COST, allowed)
    assert best.argmax(axis=1).tolist() == chosen.index[:, 0].tolist()
    assert (best.sum(axis=1) == 1).all()
    return int(chosen.index[0, 0])


def test_the_cheapest_within_tau_else_the_smallest_shortfall():
    short, cost = [0.3, 0.04, 0.0], [1.0, 2.0, 9.0]
    assert [choose(tau, short, cost) for tau in (0.0, 0.05, 0.3, np.inf)] == [2, 1, 0, 0]
    assert choose(0.1, [0.4, 0.3, 0.2], [1, 2, 9]) == 2


def test_ties_go_by_cost_then_capability_then_order():
    assert choose(0.1, [0.4, 0.2, 0.2], [1, 9, 2]) == 2
    assert choose(0.1, [0, 0, 0], [1, 1, 1], [0.2, 0.9, 0.9]) == 1
    assert choose(0.1, [0, 0, 0], [1, 1, 1]) == 0


def test_who_is_not_allowed_is_not_chosen():
    assert choose(0.1, [0, 0.5, 0.6], [1, 2, 1], allowed=[False, True, True]) == 1
    with pytest.raises(NoCandidateError):
        choose(0.1, [0], [1], allowed=[False])


def test_against_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(300):
        short = rng.choice([0.0, 0.1, 0.2, 0.3], size=5)
        cost, tau = rng.choice([1.0, 2.0, 3.0], size=5), rng.choice([0.0, 0.1, 0.25])
        allowed = rng.random(5) < 0.7
        allowed[rng.integers(5)] = True
        among = [j for j in range(5) if allowed[j] and short[j] <= tau]
        among = among or [j for j in range(5) if allowed[j] and short[j] == short[allowed].min()]
        assert choose(tau, short, cost, allowed=allowed) == min(among, key=lambda j: (cost[j], j))


def test_errors_name_what_is_wrong():
    with pytest.raises(ConfigError, match="tau"):
        Shortfall(-0.1)
    with pytest.raises(UnknownNameError, match="shortfall"):
        Shortfall().decide({"cost": Estimate(np.ones((1, 1)))}, COST, np.ones((1, 1), bool), RNG)
    with pytest.raises(EstimateError, match="shortfall"):
        choose(0.1, [np.nan, 0.0], [1, 2])
