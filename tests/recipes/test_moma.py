"""MoMA: agents by state, models by compromise."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.constraints import offers_needs
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.decide import permit
from polyroute.errors import ConfigError, NoCandidateError, NotFittedError, OutcomesError, UnknownNameError
from polyroute.recipes.moma import AgentSide, AgentStateMachine, choose_models, moma
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Together
from polyroute.routers.pairwise import Pairwise
from polyroute.types import Candidate, Query

MACHINE = AgentStateMachine(
    {"start": {"search": "found", "book": "booked"}, "found": {"book": "booked", "search": "found"}, "booked": {}}
)


def query(x):
    return Query("q", "", np.asarray(x, np.float32))


@pytest.fixture
def side():
    examples = [query([1, 0, 0]), query([0, 1, 0]), query([0, 0, 1])]
    agents = {"search": "finding", "book": "buying", "cancel": "undoing"}
    return AgentSide(agents, MACHINE, none_below=0.3).fit(examples, ["finding", "buying", "undoing"])


def test_the_nearest_agent_that_may_act(side):
    assert side.choose(query([0.9, 0.2, 0.1])) == "search"
    assert side.choose(query([0.1, 0.5, 0.9])) == "cancel"
    assert side.choose(query([0.1, 0.5, 0.9]), "start") == "book"  # cancel may not act yet
    assert side.choose(query([0.0, 0.1, 0.9]), "start") is None  # and nobody else is near
    assert side.choose(query([1, 0, 0]), "booked") is None


def test_two_hundred_random_walks_never_choose_a_masked_agent():
    rng = np.random.default_rng(0)
    names, states = [f"a{i}" for i in range(8)], [f"s{i}" for i in range(5)]
    machine = AgentStateMachine(
        {s: {str(a): str(rng.choice(states)) for a in rng.choice(names, 3, replace=False)} for s in states}
    )
    side = AgentSide({a: a for a in names}, machine, none_below=-1.0).fit([query(row) for row in np.eye(8)], names)
    for _ in range(200):
        state = str(rng.choice(states))
        for _ in range(10):
            agent = side.choose(query(rng.normal(size=8)), state)
            assert agent in machine.agents(state)
            state = machine.step(state, agent)


def test_the_mask_is_a_constraint_with_a_name():
    pool = [Candidate("search", "agent"), Candidate("cancel", "agent"), Candidate("model")]
    allowed, refused = permit([query([1, 0, 0])], pool, [offers_needs, MACHINE.mask("start")])
    assert allowed.tolist() == [[True, False, True]]
    assert refused == [{"cancel": "state start"}]
    with pytest.raises(NoCandidateError, match="search by state booked"):
        permit([query([1, 0, 0])], pool[:2], [MACHINE.mask("booked")])


def test_no_agent_fits_so_a_model_answers_best_at_weight_one_and_cheapest_at_zero(side):
    table = synthetic_outcomes(300, 4, rng=np.random.default_rng(3)).outcomes
    router = Together([Pairwise(), Linear("cost", tokens="linear")]).fit(table)
    estimates = router.predict(table.queries, table.pool)
    best = choose_models(router, table.queries, table.pool, 1.0)
    cheap = choose_models(router, table.queries, table.pool, 0.0)
    assert (best == estimates["quality"].mean.argmax(axis=1)).all()
    assert (cheap == estimates["cost"].mean.argmin(axis=1)).all()

    class Everyone(Together):
        def predict(self, queries, pool):
            return super().predict(table.queries[:1], pool)

    models = Everyone(router.routers)
    pool = [Candidate("search", "agent"), *table.pool]
    assert moma(query([1, 0, 0]), pool, side, models, state="start") == "search"
    assert moma(query([-1, 0, 0]), pool, side, models, state="start", weight=0.0) == table.pool[int(cheap[0])].id


def test_what_is_wrong_is_named(side):
    with pytest.raises(ConfigError, match=r"transitions.a: expected next states"):
        AgentStateMachine({"a": {"x": "nowhere"}})
    with pytest.raises(UnknownNameError, match="Did you mean 'start'"):
        MACHINE.mask("starts")
    with pytest.raises(UnknownNameError, match="agent in state 'booked'"):
        MACHINE.step("booked", "book")
    with pytest.raises(OutcomesError, match="none of undoing"):
        AgentSide({"cancel": "undoing"}, MACHINE).fit([query([1, 0, 0])], ["finding"])
    with pytest.raises(NotFittedError):
        AgentSide({}, MACHINE).choose(query([1, 0, 0]))
