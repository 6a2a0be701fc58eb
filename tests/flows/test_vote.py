"""Votes: one query as a flow, a table as arrays, and the two agree."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.flows.cascade import recorded, run
from polyroute.flows.vote import log_odds, tally, vote, winners
from polyroute.types import Candidate, Outcomes, Query

MEMBERS = [Candidate(name) for name in ("a", "b", "c")]


def table(codes, cost=(1.0, 2.0, 10.0)):
    codes = np.asarray(codes, float)
    n = len(codes)
    values = {
        "answer": codes,
        "quality": np.where(codes == 1, 1.0, 0.0),
        "cost": np.tile(np.asarray(cost, float), (n, 1)),
        "latency": np.tile([0.1, 0.2, 0.3], (n, 1)),
    }
    return Outcomes([Query(f"q{i}") for i in range(n)], MEMBERS, values, np.ones((n, 3), bool))


def answer(outcome):
    code = int(outcome.metrics["answer"])
    return None if code < 0 else code


def test_most_weight_wins():
    found = tally(["x", "y", "y"], [3.0, 1.0, 1.5])
    assert (found.answer, found.member) == ("x", 0)
    assert found.share == pytest.approx(3 / 5.5)
    assert found.lead == pytest.approx(0.5)
    assert found.weight == {"x": 3.0, "y": 2.5}


def test_ties_go_to_the_surest_then_to_the_first():
    assert tally(["x", "y"]).answer == "x"
    assert tally(["x", "y"], confidence=[0.2, 0.9]).answer == "y"
    assert tally(["x", "y", "y"], [2, 1, 1]).answer == "x"


def test_the_heaviest_who_gave_it_stands_for_it():
    assert tally(["x", "x", "y"], [1.0, 2.0, 0.5]).member == 1


def test_abstaining():
    assert tally([None, "y", None], [9, 1, 9]).answer == "y"
    assert tally([None, None]) == (None, -1, 0.0, 0.0, {})
    assert tally([]).answer is None


def test_wrong_weights():
    with pytest.raises(ShapeError, match=r"weights: expected shape \(2,\), got \(1,\)"):
        tally(["x", "y"], [1.0])
    with pytest.raises(ConfigError, match="weights: expected finite numbers"):
        tally(["x"], [math.nan])


def test_the_flow_agrees_with_the_arrays_on_every_pattern():
    codes = np.array(list(itertools.product([-1, 0, 1, 2], repeat=3)))
    outcomes = table(codes)
    backend = recorded(outcomes)
    for weights in ([1, 1, 1], [1, 1, 1.5], [3, 1, 1], [0, 1, 0.5]):
        member = winners(codes, weights)
        for i, query in enumerate(outcomes.queries):
            for early in (False, True):
                outcome = run(vote(query, MEMBERS, answer, weights, early=early), backend)
                if member[i] < 0:
                    assert answer(outcome) is None
                else:
                    assert answer(outcome) == codes[i, member[i]], (codes[i], weights, early)
                if not early:
                    assert outcome.metrics["cost"] == 13.0
                    assert outcome.metrics["latency"] == pytest.approx(0.6)
                    if member[i] >= 0:
                        assert outcome.decision.candidate_ids == (MEMBERS[member[i]].id,)


def test_two_cheap_ones_agree_or_the_dear_one_decides():
    outcomes = table([[1, 1, 2], [0, 1, 2], [0, 1, 0], [-1, 1, 2]])
    backend = recorded(outcomes)
    found = [run(vote(q, MEMBERS, answer, [1, 1, 1.5], early=True), backend) for q in outcomes.queries]
    assert [o.metrics["cost"] for o in found] == [3.0, 13.0, 13.0, 13.0]
    assert [answer(o) for o in found] == [1, 2, 0, 2]


def test_weights_of_each_row():
    codes = np.array([[0, 1, 1], [0, 1, 1]])
    assert winners(codes, [[3, 1, 1], [1, 1, 1]]).tolist() == [0, 1]
    with pytest.raises(ShapeError):
        winners(codes, [1, 2])


def test_confidence_breaks_ties_in_a_flow():
    outcomes = table([[0, 1, -1]])
    flow = vote(outcomes.queries[0], MEMBERS, answer, confidence=lambda o: o.metrics["latency"])
    assert answer(run(flow, recorded(outcomes))) == 1


def test_no_members_and_weights_against():
    with pytest.raises(NoCandidateError):
        next(vote(Query("q"), [], answer))
    with pytest.raises(ConfigError, match="to stop early"):
        next(vote(Query("q"), MEMBERS, answer, [1, 1, -1], early=True))


def test_log_odds_are_the_best_weights_of_independent_voters():
    accuracy = np.array([0.9, 0.6, 0.6])
    weight = log_odds(accuracy)
    assert weight == pytest.approx(np.log(accuracy / (1 - accuracy)))
    assert log_odds(0.25, 4) == pytest.approx(0.0)
    assert np.isfinite(log_odds([0.0, 1.0])).all()

    def right(weights):  # chance that the vote is right, over all patterns of two choices
        total = 0.0
        for pattern in itertools.product([0, 1], repeat=3):
            chance = np.prod([p if r else 1 - p for p, r in zip(accuracy, pattern, strict=True)])
            codes = np.array([pattern])
            total += chance * codes[0, winners(codes, weights)[0]]
        return total

    tried = [right(w) for w in itertools.product([0.0, 0.5, 1.0, 2.5], repeat=3)]
    assert right(weight) == pytest.approx(max(tried))
