"""TCAR: sets of agents, newcomers by description, and one answer out of several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.errors import NoCandidateError, OutcomesError
from polyroute.flows.cascade import run
from polyroute.flows.refine import refine
from polyroute.recipes.tcar import AgentSetRouter
from polyroute.types import Candidate, Outcome, Outcomes, Profile, Query


def world(n, rng, centres):
    """Queries near one or two of the centres; an agent is right for the centres that were used."""
    m = len(centres)
    pool = [Candidate(f"agent-{j}", "agent", Profile(embedding=c)) for j, c in enumerate(centres)]
    first, second = rng.integers(m, size=n), rng.integers(m, size=n)
    two = rng.random(n) < 0.3
    right = np.zeros((n, m))
    right[np.arange(n), first] = 1
    right[two, second[two]] = 1
    x = (right @ centres + 0.2 * rng.normal(size=(n, centres.shape[1]))).astype(np.float32)
    return Outcomes([Query(f"q{i}", embedding=row) for i, row in enumerate(x)], pool, {"quality": right}, right >= 0)


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(12, 6)))[0].T.astype(np.float32)
    return world(400, rng, centres), world(200, rng, centres)


def test_sets_follow_how_many_are_right(tables):
    train, test = tables
    router = AgentSetRouter(oos_tau=0.1, rank=None).fit(train)
    right = test.values["quality"] > 0
    sets = router.route(test.queries)
    size = np.array([len(ids) for ids in sets])
    assert size[right.sum(axis=1) == 2].mean() > size[right.sum(axis=1) == 1].mean() + 0.5
    hit = [any(right[i, int(name[-1])] for name in ids) for i, ids in enumerate(sets)]
    assert np.mean(hit) > 0.95
    nowhere = Query("far", embedding=-sum(c.profile.embedding for c in train.pool))
    assert AgentSetRouter(oos_tau=0.6, rank=None).fit(train).route([nowhere]) == [()]


def test_an_agent_is_added_by_its_description(tables):
    train, test = tables
    rows = train.values["quality"][:, 5] == 0
    known = train.take(rows).among([c.id for c in train.pool[:5]])
    router = AgentSetRouter(oos_tau=0.0, rank=None).fit(known)
    only = (test.values["quality"][:, 5] == 1) & (test.values["quality"].sum(axis=1) == 1)
    theirs = [test.queries[i] for i in np.flatnonzero(only)]
    assert not any("agent-5" in ids for ids in router.route(theirs))
    router.add_agent(train.pool[5])
    assert np.mean(["agent-5" in ids for ids in router.route(theirs)]) > 0.8
    router.add_agent(train.pool[5], train.take(np.arange(80)))
    assert [c.id for c in router.pool_].count("agent-5") == 1
    assert np.mean(["agent-5" in ids for ids in router.route(theirs)]) > 0.8


def test_a_description_of_another_width_is_an_error(tables):
    train, test = tables
    router = AgentSetRouter(rank=None).fit(train)
    router.add_agent(replace(train.pool[0], id="odd", profile=Profile(embedding=np.ones(3))))
    with pytest.raises(OutcomesError, match="description of candidate 'odd'"):
        router.route(test.queries)


def test_several_answers_are_refined_and_one_stands():
    seen = []

    def backend(decision):
        seen.append((decision.candidate_ids[0], decision.prompt))
        return Outcome(decision, {"cost": 1.0}, f"{decision.candidate_ids[0]} says so")

    query, refiner = Query("q", "why?"), Candidate("refiner")
    done = run(refine(query, [Candidate("a"), Candidate("b")], refiner), backend)
    assert [name for name, _ in seen] == ["a", "b", "refiner"]
    assert "a: a says so\nb: b says so" in seen[-1][1]
    assert "contradict" in seen[-1][1]
    assert done.text == "refiner says so"
    assert done.metrics == {"cost": 3.0, "asked": 2.0}
    seen.clear()
    assert run(refine(query, [Candidate("a")], refiner), backend).text == "a says so"
    assert len(seen) == 1
    with pytest.raises(NoCandidateError):
        run(refine(query, [], refiner), backend)
