"""ORCH: who is asked, how answers are merged, and what an agent is worth."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import NotFittedError
from polyroute.flows.cascade import recorded, run
from polyroute.offline.online import best_static, regret, replay_online
from polyroute.policies.greedy import Greedy
from polyroute.recipes.orch import agree_or_ask, averages, orchestrate, task_contexts, worth
from polyroute.routers.context import Contexts
from polyroute.types import Candidate, Objective, Outcomes, Query
from tests.recipes.topics import each_good_at_one_topic

QUALITY = Objective({"quality": 1.0})
AGENTS = [Candidate(name) for name in ("a", "b", "c", "d")]


def answered(codes, right=1):
    codes = np.atleast_2d(codes).astype(float)
    values = {
        "answer": codes,
        "quality": (codes == right).astype(float),
        "cost": np.tile([1.0, 1.0, 1.0, 9.0], (len(codes), 1)),
    }
    queries = [Query(f"q{i}", embedding=np.ones(2, np.float32)) for i in range(len(codes))]
    return Outcomes(queries, AGENTS, values, np.ones(codes.shape, bool))


def answer(outcome):
    return int(outcome.metrics["answer"])


def test_a_key_of_the_task_beats_the_best_fixed_agent_and_one_average_does_not():
    table = each_good_at_one_topic(1500, np.random.default_rng(1))
    apart, stream = table.take(np.arange(200)), table.take(np.arange(200, 1500))
    contexts = task_contexts(apart.queries, apart.labels["dataset"])
    lost = {}
    for name, router in (("keyed", averages(contexts)), ("one", averages())):
        found = replay_online(router, Greedy(), stream, QUALITY, np.random.default_rng(0), full_feedback=True, batch=10)
        lost[name] = regret(found, stream, QUALITY, best_static(stream, QUALITY))[-1] / len(stream)
    assert lost["keyed"] < -0.2
    assert lost["one"] > -0.05


def test_the_k_of_most_worth_are_asked_and_heard_by_their_worth():
    history = answered(np.array([[1, 0, 1, 1]] * 40 + [[0, 0, 1, 1]] * 20))  # worth 0.67, 0, 1, 1
    router = averages(beta=1e-6, kappa=0.1).fit(history)
    outcome = run(orchestrate(router, history.queries[0], AGENTS, answer, k=3), recorded(answered([[2, 3, 0, 1]])))
    assert outcome.metrics["cost"] == 11.0  # a, c and d
    assert answer(outcome) == 0  # c and d are worth as much, the first in order wins
    outcome = run(orchestrate(router, history.queries[0], AGENTS, answer, k=1), recorded(answered([[2, 3, 0, 1]])))
    assert (answer(outcome), outcome.metrics["cost"]) == (0, 1.0)


def test_before_any_outcome_everyone_counts_the_same():
    outcome = run(orchestrate(averages(), Query("q0"), AGENTS, answer, choices=2.0), recorded(answered([[0, 2, 2, 1]])))
    assert answer(outcome) == 2


@pytest.mark.parametrize(
    ("codes", "said", "cost"), [([1, 1, 0, 2], 1, 2.0), ([1, 0, 0, 2], 2, 11.0), ([2, 0, 1, 2], 2, 11.0)]
)
def test_two_that_agree_or_the_dear_one(codes, said, cost):
    table = answered(codes)
    outcome = run(agree_or_ask(table.queries[0], AGENTS[:2], AGENTS[3], answer), recorded(table))
    assert (answer(outcome), outcome.metrics["cost"]) == (said, cost)


def test_worth_takes_off_what_an_answer_cost():
    table = worth(answered([[1, 0, 1, 1]]), cost=0.5)
    assert table.values["quality"][0] == pytest.approx([1 - 0.5 / 9, -0.5 / 9, 1 - 0.5 / 9, 0.5])


def test_contexts_must_be_fitted():
    with pytest.raises(NotFittedError):
        averages(Contexts(2))
