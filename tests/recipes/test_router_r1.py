"""Router-R1: the loop from end to end, and a policy that learns whom to ask from rewards of traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ReplyError
from polyroute.recipes.router_r1 import CONFIG, AgenticRouter, graded_traces, learn_names
from polyroute.types import Candidate, Outcome, Query

LONG = replace(CONFIG, epochs=25)  # the table is small
POOL = [Candidate("small"), Candidate("large")]


def test_a_trace_tells_what_was_written_and_what_it_breaks():
    def backend(decision):
        said = {"router": "<think>t</think><answer>7</answer>", "small": "7", "large": "7"}[decision.candidate_ids[0]]
        return Outcome(decision, {"cost": 1.0}, said)

    trace = AgenticRouter(Candidate("router"), POOL).run(Query("q", "3+4?"), backend)
    assert trace.answer == "7"
    assert trace.fault is None
    assert trace.outcome.metrics["cost"] == 1.0

    def mumbling(decision):
        return Outcome(decision, {}, "hm" if decision.candidate_ids == ("router",) else "7")

    trace = AgenticRouter(Candidate("router"), POOL, fallback=POOL[1]).run(Query("q", "3+4?"), mumbling)
    assert trace.answer == "7"
    assert trace.fault == "it does not begin with <think>"
    with pytest.raises(ReplyError):
        AgenticRouter(Candidate("router"), POOL).run(Query("q", "3+4?"), mumbling)


@pytest.fixture(scope="module")
def world():
    outcomes = synthetic_outcomes(400, 3, rng=np.random.default_rng(7)).outcomes  # no model is best at every topic
    names = [c.id for c in outcomes.pool] + ["ghost"]
    return outcomes, graded_traces(outcomes, names, router_cost=1e-6)


def test_graded_traces_say_what_the_table_says(world):
    outcomes, graded = world
    assert (graded.outcome[:, :3] == outcomes.values["quality"]).all()
    assert graded.cost[:, :3] == pytest.approx(outcomes.values["cost"] + 2e-6), "two turns of the router are paid too"
    assert not graded.broken[:, :3].any()
    assert graded.broken[:, 3].all()
    assert (graded.outcome[:, 3] == 0).all()


def test_it_learns_whom_to_ask_and_alpha_makes_it_cheaper(world):
    outcomes, graded = world
    pool = [*outcomes.pool, Candidate("ghost")]
    rows, quality, cost = np.arange(len(outcomes)), outcomes.values["quality"], outcomes.values["cost"]

    def learned(alpha, of=graded):
        policy = learn_names(of, outcomes.queries, pool, alpha=alpha, config=LONG, rng=np.random.default_rng(0))
        return policy.predict(outcomes.queries, pool)["preference"].mean.argmax(axis=1)

    choice = learned(0.0)
    assert choice.max() < 3, "nobody is sent to the made-up name"
    assert quality[rows, choice].mean() > quality.mean(axis=0).max()
    thrifty = learned(0.9)
    assert cost[rows, thrifty].mean() < 0.5 * cost[rows, choice].mean()
    assert (learned(0.9, graded._replace(cost=1024.0 * graded.cost)) == thrifty).all()
