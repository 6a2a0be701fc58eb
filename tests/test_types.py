import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError, UnknownCandidateError, UnknownNameError
from polyroute.types import Candidate, Decision, Estimate, Objective, Outcome, Outcomes, Profile, Query


def outcomes(n=4, ids=("a", "b", "c")):
    m = len(ids)
    return Outcomes(
        [Query(f"q{i}") for i in range(n)],
        [Candidate(c) for c in ids],
        {"quality": np.arange(n * m, dtype=float).reshape(n, m)},
        np.arange(n * m).reshape(n, m) % 2 == 0,
        {"split": np.array(["train", "test"] * (n // 2))},
        np.linspace(0.1, 0.4, n),
    )


def test_utility_is_the_weighted_sum():
    estimates = {"quality": Estimate(np.array([[0.5, 0.9]])), "cost": Estimate(np.array([[0.001, 0.01]]))}
    utility = Objective({"quality": 1.0, "cost": -50.0}).utility(estimates)
    np.testing.assert_allclose(utility, [[0.45, 0.4]])


def test_utility_needs_every_metric_it_weighs():
    with pytest.raises(UnknownNameError, match=r"Unknown metric 'costs'.*Did you mean 'cost'") as caught:
        Objective({"costs": -1.0}).utility({"cost": Estimate(np.zeros((1, 1)))})
    assert caught.value.suggestion == "cost"


def test_weights_are_checked():
    with pytest.raises(ConfigError, match="weights: expected the weight of at least one metric"):
        Objective({})
    with pytest.raises(ConfigError, match=r"weights.cost: expected a finite number, got nan"):
        Objective({"quality": 1.0, "cost": float("nan")})


def test_records_are_frozen_and_small():
    for record in (Query("q"), Candidate("c"), Profile(), Decision("q", ("c",)), Objective({"quality": 1.0})):
        assert not hasattr(record, "__dict__")
        with pytest.raises(FrozenInstanceError):
            setattr(record, fields(record)[0].name, "other")


def test_decisions_and_outcomes_compare_and_survive_copies():
    decision = Decision("q", ("a", "b"), 0.25, "because")
    outcome = Outcome(decision, {"quality": 1.0})
    assert copy.deepcopy(outcome) == outcome
    assert pickle.loads(pickle.dumps(decision)) == decision
    assert decision != Decision("q", ("a",), 0.25, "because")


def test_taking_rows_takes_all_that_belongs_to_them():
    table = outcomes()
    for rows in (np.array([True, False, False, True]), np.array([0, 3]), [0, 3]):
        some = table.take(rows)
        assert [q.id for q in some.queries] == ["q0", "q3"]
        assert some.values["quality"].tolist() == table.values["quality"][[0, 3]].tolist()
        assert some.observed.tolist() == table.observed[[0, 3]].tolist()
        assert some.labels["split"].tolist() == ["train", "test"]
        assert some.propensity.tolist() == [0.1, 0.4]
    assert len(table.take(np.zeros(4, bool))) == 0
    assert [q.id for q in table.take([3, 3, 1]).queries] == ["q3", "q3", "q1"]


def test_taking_candidates_follows_the_order_given():
    some = outcomes().among(["c", "a"])
    assert [c.id for c in some.pool] == ["c", "a"]
    assert some.values["quality"][1].tolist() == [5.0, 3.0]
    assert some.observed[1].tolist() == [False, False]
    with pytest.raises(UnknownCandidateError, match="'d'") as caught:
        outcomes().among(["a", "d"])
    assert (caught.value.missing, caught.value.known) == (["d"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("values", {"cost": np.zeros((4, 2))}, r"values\['cost'\]: expected shape \(4, 3\), got \(4, 2\)"),
        ("observed", np.zeros((3, 4)), r"observed: expected shape \(4, 3\), got \(3, 4\)"),
        ("labels", {"group": np.zeros(3)}, r"labels\['group'\]: expected shape \(4,\), got \(3,\)"),
        ("propensity", np.zeros((4, 1)), r"propensity.*: expected shape \(4,\), got \(4, 1\)"),
    ],
)
def test_a_part_that_does_not_fit_is_named(part, value, message):
    table = outcomes()
    parts = {name: getattr(table, name) for name in ("queries", "pool", "values", "observed", "labels", "propensity")}
    with pytest.raises(ShapeError, match=message):
        Outcomes(**{**parts, part: value})
