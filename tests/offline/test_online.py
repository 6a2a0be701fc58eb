"""A stream replayed: scored before learned, told only what was chosen, late where it should be late."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError
from polyroute.offline.online import band, best_static, regret, replay_online
from polyroute.policies.explore import Epsilon
from polyroute.policies.greedy import Greedy
from polyroute.routers.diagonal import Diagonal
from polyroute.types import Estimate, Objective
from tests.routers.tables import table_of

QUALITY = Objective({"quality": 1.0})


class Diary:
    """Says 0.5 of everyone and writes down what it is told."""

    def __init__(self):
        self.log = []

    def predict(self, queries, pool):
        self.log.append(("asked", [q.id for q in queries]))
        return {"quality": Estimate(np.full((len(queries), len(pool)), 0.5), np.ones((len(queries), len(pool))))}

    def update(self, outcomes):
        self.log.append(("told", [q.id for q in outcomes.queries], outcomes))


def stream(n=6, m=3, seed=0):
    rng = np.random.default_rng(seed)
    return table_of(np.eye(2, dtype=np.float32)[rng.integers(2, size=n)], rng.random((n, m)))


def test_each_row_is_asked_before_it_is_told_and_only_the_choice_is_told():
    table, diary = stream(), Diary()
    run = replay_online(diary, Greedy(), table, QUALITY, np.random.default_rng(0), order=[3, 1, 0, 2, 5, 4], batch=2)
    assert [entry[:2] for entry in diary.log] == [
        ("asked", ["q3", "q1"]), ("told", ["q3", "q1"]), ("asked", ["q0", "q2"]), ("told", ["q0", "q2"]),
        ("asked", ["q5", "q4"]), ("told", ["q5", "q4"]),
    ]  # fmt: skip
    heard = diary.log[1][2]
    assert heard.observed.tolist() == [[True, False, False]] * 2
    assert np.isnan(heard.values["quality"][:, 1:]).all()
    assert run.value.tolist() == table.values["quality"][[3, 1, 0, 2, 5, 4], 0].tolist()
    assert heard.propensity.tolist() == [1.0, 1.0]


def test_a_late_outcome_is_told_that_many_steps_later_and_never_out_of_order():
    diary = Diary()
    replay_online(diary, Greedy(), stream(), QUALITY, np.random.default_rng(0), order=np.arange(6), delay=2)
    told = [entry[1] for entry in diary.log if entry[0] == "told"]
    assert told == [["q0"], ["q1"], ["q2"], ["q3"]]  # the last two come after the stream
    assert [entry[0] for entry in diary.log[:4]] == ["asked", "asked", "asked", "told"]


def test_full_feedback_tells_everything():
    diary = Diary()
    replay_online(diary, Greedy(), stream(), QUALITY, np.random.default_rng(0), batch=6, full_feedback=True)
    assert diary.log[1][2].observed.all()


def test_who_is_not_present_is_not_chosen_and_propensities_are_those_of_the_draw():
    table = stream(400)
    run = replay_online(
        Diary(), Epsilon(1.0), table, QUALITY, np.random.default_rng(1), batch=7,
        present=lambda t: np.array([True, t >= 200, True]),
    )  # fmt: skip
    assert (run.choice[:200] != 1).all()
    assert (run.choice[200:] == 1).mean() == pytest.approx(1 / 3, abs=0.1)
    assert run.propensity[:200] == pytest.approx(0.5)
    assert run.propensity[200:] == pytest.approx(1 / 3)


def test_a_bandit_learns_which_candidate_suits_which_context():
    rng = np.random.default_rng(2)
    side = rng.integers(2, size=600)
    chance = np.where(np.eye(2)[side] > 0, 0.9, 0.2)
    table = table_of(np.eye(2, dtype=np.float32)[side], (rng.random((600, 2)) < chance).astype(float))
    run = replay_online(Diagonal(), Epsilon(0.1), table, QUALITY, np.random.default_rng(3))
    assert run.value[200:].mean() > 0.78
    static = best_static(table, QUALITY)
    lost = regret(run, table, QUALITY, static)
    assert lost[-1] < -100
    oracle = regret(run, table, QUALITY)
    assert (np.diff(oracle) >= 0).all()
    assert oracle[-1] == pytest.approx(table.values["quality"].max(axis=1).sum() - run.value.sum())
    assert lost[-1] == pytest.approx(table.values["quality"][:, static].sum() - run.value.sum())


def test_a_band_of_curves():
    found = band([[1.0, 2.0], [3.0, 2.0]])
    assert found.mean.tolist() == [2.0, 2.0]
    assert found.low.tolist() == [0.0, 2.0]
    assert found.high.tolist() == [4.0, 2.0]


def test_wrong_streams():
    table = stream()
    rng = np.random.default_rng(0)
    for wrong in ({"batch": 0}, {"delay": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replay_online(Diary(), Greedy(), table, QUALITY, rng, **wrong)
    with pytest.raises(OutcomesError, match="'cost'"):
        replay_online(Diary(), Greedy(), table, Objective({"cost": -1.0}), rng)
    table.values["quality"][2, 1] = np.nan
    with pytest.raises(OutcomesError, match="gaps"):
        replay_online(Diary(), Greedy(), table, QUALITY, rng)
