"""The verified cascade as a flow: blocking, async and replayed are one text, and it pays for every answer."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from polyroute.errors import NoCandidateError
from polyroute.flows.cascade import Judgement, arun, recorded, run, verified
from polyroute.flows.judging import Bench
from polyroute.offline.baselines import single_models
from polyroute.offline.frontier import scale_of, summarise
from polyroute.offline.replay import gap_closed, replayed
from polyroute.recipes.verified import evidence_of, verified_cascade, verified_cascade_curve, with_answers
from polyroute.routers.knn import KNN
from polyroute.types import Candidate, Outcomes, Query

PRICES = (0.05, 1.0)


def world(n: int = 400, seed: int = 0):
    """Sums of two numbers: the small model is right 60 % of the time, and says a wrong sum where it is not."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(10, 99, size=(n, 2))
    right = rng.random((n, 2)) < [0.6, 0.95]
    queries = [Query(f"q{seed}-{i}", f"What is {a} plus {b}?", rng.normal(size=4).astype(np.float32))
               for i, (a, b) in enumerate(pairs)]  # fmt: skip
    pool = [Candidate("small"), Candidate("large")]
    answers = {
        (q.id, c.id): f"{a} + {b} = {a + b + (0 if right[i, j] else 7)}"
        for i, (q, (a, b)) in enumerate(zip(queries, pairs, strict=True))
        for j, c in enumerate(pool)
    }
    values = {"quality": right.astype(float), "cost": np.tile(PRICES, (n, 1))}
    return Outcomes(queries, pool, values, np.ones((n, 2), bool)), answers


@pytest.fixture(scope="module")
def bench():
    train, answers = world()
    return Bench(verified_cascade(KNN()).fit(train, evidence_of(train, answers)), train.pool)


def test_it_escalates_wrong_sums_and_pays_for_both(bench):
    test, answers = world(60, 1)
    found = replayed("x", bench.flow, test, [0.2], answers)
    right, cost = test.values["quality"][:, 0] == 1, found.curve.cost[0]
    assert found.curve.quality[0, right].all()
    assert cost[right] == pytest.approx(PRICES[0])
    assert cost[~right] == pytest.approx(sum(PRICES))
    assert found.asked[0] == pytest.approx([1.0, 1 - right.mean()])


def test_blocking_async_and_replayed_are_one_text(bench):
    test, answers = world(20, 1)
    backend = recorded(test, answers)

    async def later(decision):
        return backend(decision)

    for query in test.queries:
        one = run(bench.flow(query, 0.2), backend)
        other = asyncio.run(arun(bench.flow(query, 0.2), later))
        assert (one.metrics, one.text) == (other.metrics, other.text)


def test_each_decision_says_why(bench):
    test, answers = world(40, 1)
    wrong = int(np.flatnonzero(test.values["quality"][:, 0] == 0)[0])
    flow = bench.flow(test.queries[wrong], 0.2)
    first = next(flow)
    assert (first.candidate_ids, first.because) == (("small",), "first try")
    second = flow.send(recorded(test, answers)(first))
    assert second.candidate_ids == ("large",)
    assert second.because.startswith("right 0.")


def test_its_curve_closes_most_of_the_gap_where_answers_tell(bench):
    train, answers = world()
    test, more = world(150, 1)
    curve = verified_cascade_curve(train, test, {**answers, **more}, (0.0, 0.05, 0.2, 0.5, np.inf),
                                   verified_cascade(KNN()))  # fmt: skip
    scale = scale_of(test.values["quality"].mean(axis=0), test.values["cost"].mean(axis=0))
    mix = single_models(test)
    aiq = [summarise(c.quality.mean(axis=1), c.cost.mean(axis=1), scale).aiq for c in (curve, mix)]
    assert gap_closed(aiq[0], aiq[1], 1.0) > 0.5
    assert curve.cost[-1] == pytest.approx(PRICES[0])


def test_only_complete_answers_teach():
    train, answers = world(10)
    del answers[train.queries[3].id, "large"]
    assert [q.id for q in with_answers(train, answers).queries] == [q.id for q in train.queries if q.id != "q0-3"]
    assert not evidence_of(train, answers).features[3, 1].any()


def test_a_judge_that_asks_nobody_and_one_that_asks_twice():
    with pytest.raises(NoCandidateError):
        next(verified(Query("q"), lambda query, tried: Judgement()))
    test, answers = world(1)
    backend = recorded(test, answers)
    asked = []

    def judge(query, tried):
        asked.append(len(tried))
        return Judgement(0, test.pool[0])

    outcome = run(verified(test.queries[0], judge), backend)
    assert asked == [0, 1]  # nobody is asked twice
    assert outcome.metrics["cost"] == pytest.approx(PRICES[0])
