import asyncio

import numpy as np
import pytest

from polyroute.errors import NoCandidateError, OutcomesError, UnknownCandidateError, UnknownNameError, UpstreamError
from polyroute.flows.cascade import arun, cascade, recorded, replay, run, together
from polyroute.types import Candidate, Decision, Outcome, Outcomes, Query

LADDER = [Candidate("small"), Candidate("medium"), Candidate("large")]
QUALITY = np.array([[0.9, 0.1, 1.0], [0.2, 0.8, 1.0], [0.1, 0.3, 0.4]])
COST = np.array([[0.1, 1.0, 10.0]] * 3)
TABLE = Outcomes(
    [Query("easy"), Query("middling"), Query("hopeless")],
    LADDER,
    {"quality": QUALITY, "cost": COST},
    np.ones((3, 3), bool),
)


def good_enough(outcome):
    return outcome.metrics["quality"] >= 0.7


@pytest.mark.parametrize(
    ("row", "ends_at", "cost"), [(0, "small", 0.1), (1, "medium", 1.1), (2, "large", 11.1)], ids=["easy", "mid", "hard"]
)
def test_it_climbs_until_accepted_and_pays_for_every_rung(row, ends_at, cost):
    outcome = replay(cascade(TABLE.queries[row], LADDER, good_enough), TABLE)
    assert outcome.decision.candidate_ids == (ends_at,)
    assert outcome.metrics["quality"] == QUALITY[row, ["small", "medium", "large"].index(ends_at)]
    assert outcome.metrics["cost"] == pytest.approx(cost)


def test_it_agrees_with_working_the_table_by_hand():
    rng = np.random.default_rng(0)
    quality, cost = rng.random((200, 3)), rng.random((200, 3))
    table = Outcomes([Query(str(i)) for i in range(200)], LADDER, {"quality": quality, "cost": cost}, quality > -1)
    backend = recorded(table)
    for i, query in enumerate(table.queries):
        rung = next((j for j in range(2) if quality[i, j] >= 0.7), 2)
        outcome = run(cascade(query, LADDER, good_enough), backend)
        assert outcome.metrics == pytest.approx({"quality": quality[i, rung], "cost": cost[i, : rung + 1].sum()})


def test_each_decision_says_which_rung_it_is_and_the_last_is_not_judged():
    flow, judged = cascade(Query("q"), LADDER[:2], lambda outcome: judged.append(outcome) or False), []
    first = next(flow)
    assert (first.query_id, first.candidate_ids, first.because) == ("q", ("small",), "rung 1 of 2")
    second = flow.send(Outcome(first, {"quality": 0.0}))
    assert second.because == "rung 2 of 2"
    with pytest.raises(StopIteration) as done:
        flow.send(Outcome(second, {"quality": 0.0}))
    assert done.value.value.decision is second
    assert len(judged) == 1


def test_blocking_async_and_replayed_are_one_text():
    backend = recorded(TABLE)

    async def slow_backend(decision):
        await asyncio.sleep(0)
        return backend(decision)

    for query in TABLE.queries:
        blocking = run(cascade(query, LADDER, good_enough), backend)
        assert asyncio.run(arun(cascade(query, LADDER, good_enough), slow_backend)) == blocking
        assert replay(cascade(query, LADDER, good_enough), TABLE) == blocking


def test_what_the_backend_raises_reaches_the_caller():
    def broken(decision):
        raise UpstreamError("refused", "nobody listens")

    async def broken_too(decision):
        raise UpstreamError("refused", "nobody listens")

    with pytest.raises(UpstreamError, match="nobody listens"):
        run(cascade(Query("q"), LADDER, good_enough), broken)
    with pytest.raises(UpstreamError, match="nobody listens"):
        asyncio.run(arun(cascade(Query("q"), LADDER, good_enough), broken_too))


def test_only_what_adds_up_is_added_up():
    decision = Decision("q", ("small",))
    tried = [
        Outcome(decision, {"quality": 0.1, "cost": 1.0, "latency": 2.0, "output_tokens": 30.0}),
        Outcome(decision, {"quality": 0.9, "cost": 4.0, "ok": 1.0}),
    ]
    assert together(tried).metrics == {"quality": 0.9, "cost": 5.0, "latency": 2.0, "output_tokens": 30.0, "ok": 1.0}


def test_an_empty_ladder_is_an_error():
    with pytest.raises(NoCandidateError, match=r"'q'.*the pool is empty"):
        run(cascade(Query("q"), [], good_enough), recorded(TABLE))


@pytest.mark.parametrize(
    ("decision", "error", "message"),
    [
        (Decision("hopeles", ("small",)), UnknownNameError, "Unknown query 'hopeles'.*Did you mean 'hopeless'"),
        (Decision("easy", ("huge",)), UnknownCandidateError, "No estimate for 'huge'"),
        (Decision("easy", ("small", "large")), OutcomesError, r"expected a decision for 1 candidate, got 2"),
        (Decision("easy", ("large",)), OutcomesError, "query 'easy', candidate 'large': expected an observed outcome"),
    ],
)
def test_what_a_table_does_not_hold_is_an_error(decision, error, message):
    seen = np.array([[True, True, False], [True] * 3, [True] * 3])
    with pytest.raises(error, match=message):
        recorded(Outcomes(TABLE.queries, LADDER, TABLE.values, seen))(decision)
