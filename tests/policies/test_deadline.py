import numpy as np
import pytest

from polyroute.errors import ConfigError, EstimateError, ShapeError, UnknownNameError
from polyroute.policies.deadline import Deadline
from polyroute.policies.explore import Epsilon
from polyroute.types import Estimate, Objective

GOAL = Objective({"quality": 1.0})
RNG = np.random.default_rng(0)
QUALITY = Estimate(np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]))
LATENCY = Estimate(np.array([[3.0, 1.0, 0.2], [4.0, 3.0, 2.0]]), std=np.array([[0.1, 0.5, 0.1], [0.1, 0.1, 0.5]]))
BOTH = {"quality": QUALITY, "latency": LATENCY}
ALL = np.ones((2, 3), bool)


def test_the_best_in_time_is_chosen_and_else_the_fastest():
    assert Deadline(1.6).decide(BOTH, GOAL, ALL, RNG).index.tolist() == [[1], [2]]
    assert Deadline(9.0).decide(BOTH, GOAL, ALL, RNG).index.tolist() == [[0], [0]]


def test_doubt_counts_against_a_candidate():
    assert Deadline(1.4, z=0.0).decide(BOTH, GOAL, ALL, RNG).index.tolist()[0] == [1]
    assert Deadline(1.4, z=1.0).decide(BOTH, GOAL, ALL, RNG).index.tolist()[0] == [2]
    known = {"quality": QUALITY, "latency": Estimate(LATENCY.mean)}
    assert Deadline(1.4, z=1.0).decide(known, GOAL, ALL, RNG).index.tolist()[0] == [1]


def test_the_deadline_itself_is_in_time():
    assert Deadline(1.5).in_time(BOTH, ALL)[0].tolist() == [False, True, True]


def test_the_fastest_is_the_fastest_allowed_and_nobody_stays_nobody():
    allowed = np.array([[True, False, False], [False, False, False]])
    assert Deadline(0.1).in_time(BOTH, allowed).tolist() == [[True, False, False], [False, False, False]]


def test_the_inner_policy_keeps_its_odds_among_those_in_time():
    odds = Epsilon(0.5).probabilities(BOTH, GOAL, Deadline(1.6).in_time(BOTH, ALL))
    np.testing.assert_allclose(odds, [[0.0, 0.75, 0.25], [0.0, 0.0, 1.0]])
    chosen = Deadline(1.6, inner=Epsilon(0.5)).decide(BOTH, GOAL, ALL, np.random.default_rng(0))
    np.testing.assert_allclose(chosen.propensity, np.take_along_axis(odds, chosen.index, axis=1))


def test_latency_must_be_estimated_and_be_a_number():
    with pytest.raises(UnknownNameError, match="Unknown metric 'latency'"):
        Deadline(1.0).decide({"quality": QUALITY}, GOAL, ALL, RNG)
    for mean, std, name in ((np.nan, 0.1, "latency"), (0.1, np.nan, r"latency\.std")):
        broken = {"quality": QUALITY, "latency": Estimate(np.full((2, 3), mean), np.full((2, 3), std))}
        with pytest.raises(EstimateError, match=rf"estimates\['{name}'\]\[0, 0\]"):
            Deadline(1.0).decide(broken, GOAL, ALL, RNG)


@pytest.mark.parametrize("bad", [{"deadline_s": 0.0}, {"deadline_s": float("nan")}, {"deadline_s": 1.0, "z": -1.0}])
def test_settings_are_checked_when_built(bad):
    with pytest.raises(ConfigError):
        Deadline(**bad)


def test_who_is_allowed_must_fit_the_estimates():
    with pytest.raises(ShapeError, match=r"allowed: expected shape \(2, 3\), got \(2, 2\)"):
        Deadline(1.0).decide(BOTH, GOAL, np.ones((2, 2), bool), RNG)


@pytest.mark.parametrize("z", [np.nan, np.inf])
def test_caution_without_end_is_refused(z):
    with pytest.raises(ConfigError, match="z: expected standard deviations"):
        Deadline(1.0, z=z)
