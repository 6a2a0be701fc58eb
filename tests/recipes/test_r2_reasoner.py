"""R2-Reasoner: steps done in order, doubtful ones twice, and an allocator that trades money for right answers."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, ReplyError, ShapeError
from polyroute.flows.allocated import allocated
from polyroute.flows.cascade import run
from polyroute.flows.traces import parse_steps
from polyroute.recipes.r2_reasoner import StepAllocator, review_and_escalate
from polyroute.types import Candidate, Outcome, Query

POOL = [Candidate("large"), Candidate("small")]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1. add\n2. halve", ["add", "halve"]),
        ("Sure:\n1) add\n   both\n\n2) halve\n", ["add both", "halve"]),
        ("Step 1: add", ["add"]),
        ("1. a\n2. b\n3. c\n4. d\n5. e\n6. f", list("abcdef")),
    ],
)
def test_numbered_lines_are_steps(text, steps):
    assert parse_steps(text) == steps


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "0 steps"),
        ("first add, then halve", "0 steps"),
        ("2. halve", "number 2 follows 0"),
        ("1. add\n3. halve", "number 3 follows 1"),
        ("1. add\n1. halve", "number 1 follows 1"),
        ("1.\n2. halve", "a step says nothing"),
        ("1. ...\n2. halve", "a step says nothing"),
        ("\n".join(f"{i}. x" for i in range(1, 9)), "8 steps"),
    ],
)
def test_a_garbled_decomposition_names_its_rule(text, rule):
    with pytest.raises(ReplyError) as raised:
        parse_steps(text)
    assert raised.value.rule == rule


def test_each_step_reads_the_results_so_far_and_all_are_paid():
    seen = []

    def backend(decision):
        seen.append((decision.candidate_ids[0], decision.prompt))
        return Outcome(decision, {"cost": 1.0}, f"result {len(seen)}")

    done = run(allocated(Query("q", "how many?"), ["add", "halve"], [POOL[1], POOL[0]]), backend)
    assert [name for name, _ in seen] == ["small", "large"]
    assert "Problem: how many?" in seen[1][1]
    assert "Step 1: result 1" in seen[1][1]
    assert seen[1][1].endswith("halve")
    assert (done.text, done.metrics) == ("result 2", {"cost": 2.0, "redone": 0.0})


def test_a_doubtful_step_is_done_again_by_the_strong_one():
    def backend(decision):
        return Outcome(decision, {"cost": 1.0}, decision.candidate_ids[0])

    def review(step, outcome):
        return 0.2 if step == "hard" else 0.9

    flow = allocated(Query("q"), ["easy", "hard"], [POOL[1], POOL[1]], review=review, strong=POOL[0])
    done = run(flow, backend)
    assert (done.text, done.metrics) == ("large", {"cost": 3.0, "redone": 1.0})
    assert review_and_escalate(np.array([0.9, 0.2]), 0.5).tolist() == [False, True]
    with pytest.raises(ShapeError, match="allocation"):
        run(allocated(Query("q"), ["a"], []), backend)


def test_the_allocator_sends_hard_steps_to_dearer_models_and_caution_costs():
    rng = np.random.default_rng(0)
    difficulty = rng.random((600, 1))
    labels = (difficulty[:, 0] + 0.1 * rng.normal(size=600) < 0.5).astype(int)  # column 1, the small one, is enough
    allocator = StepAllocator(0.8).fit(difficulty, labels, POOL, np.array([10.0, 1.0]))
    assert allocator.predict(np.array([[0.05], [0.95]])).tolist() == [1, 0]
    share = [float((allocator.predict(difficulty, c) == 0).mean()) for c in (0.05, 0.5, 0.95)]
    assert share == sorted(share)
    assert share[0] < 0.45 < 0.55 < share[2]
    chance = allocator.enough(difficulty)
    assert (np.diff(chance, axis=1) >= 0).all()
    with pytest.raises(ConfigError, match="caution"):
        StepAllocator(1.0)
    with pytest.raises(ShapeError, match="costs"):
        StepAllocator().fit(difficulty, labels, POOL, np.ones(3))


def test_allocation_weighs_the_logarithm_of_success_against_each_cost():
    rng = np.random.default_rng(0)
    difficulty = rng.random((600, 1))
    labels = (difficulty[:, 0] + 0.1 * rng.normal(size=600) < 0.5).astype(int)
    allocator = StepAllocator().fit(difficulty, labels, POOL, np.array([10.0, 1.0]))
    chance = allocator.enough(difficulty[:200])  # columns by price: small, large
    cost = np.c_[rng.uniform(5, 10, 200), rng.random(200)]  # columns of the pool: large, small
    for trade_off in (0.0, 0.05, 1.0):
        gain = np.log(chance[:, 0]) - trade_off * cost[:, 1] - (np.log(chance[:, 1]) - trade_off * cost[:, 0])
        expected = (gain >= 0).astype(int)
        assert allocator.allocate(chance, cost, trade_off).tolist() == expected.tolist()
    spent = [cost[np.arange(200), allocator.allocate(chance, cost, t)].sum() for t in (0.0, 0.05, 0.2, 1.0, 10.0)]
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] == pytest.approx(cost[:, 1].sum())
    with pytest.raises(ShapeError, match="cost"):
        allocator.allocate(chance, cost[:, :1], 1.0)
