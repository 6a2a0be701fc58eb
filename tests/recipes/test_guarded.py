"""Guarded routing: own queries to their domain, foreign ones nowhere, and the score counts sets alike."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.decide import decide
from polyroute.errors import NoCandidateError, ShapeError
from polyroute.policies.greedy import Greedy
from polyroute.recipes.guarded import REJECTED, GuardedRouter, domain_outcomes, gqr_score
from polyroute.routers.constant import Constant
from polyroute.routers.novelty import Novelty
from polyroute.types import Objective
from tests.routers.test_novelty import domains, foreign

NAMES = ["sea", "court"]


def labelled(seed: int = 0):
    table = domains(seed=seed)
    return table.queries, [NAMES[i % 2] for i in range(len(table))]


@pytest.fixture(scope="module")
def guard():
    return GuardedRouter().fit(*labelled())


def test_own_queries_reach_their_domain_and_foreign_ones_none(guard):
    queries, names = labelled(1)
    placed = guard.predict(queries)
    own = np.array([guard.pool_[i].id if i != REJECTED else "" for i in placed]) == names
    assert own.mean() > 0.88
    assert (guard.predict(foreign()) == REJECTED).mean() > 0.95
    assert guard.predict([]).shape == (0,)


def test_as_a_constraint_it_refuses_in_decide(guard):
    queries, names = labelled(1)
    choose = {"router": Constant("quality", 0.5, 0.1), "policy": Greedy(), "objective": Objective({"quality": 1.0})}
    kept = [q for q, place in zip(queries, guard.predict(queries), strict=True) if place != REJECTED][:20]
    chosen = decide(kept, guard.pool_, constraints=guard.constraints(), **choose)
    assert all(d.candidate_ids[0] == names[int(d.query_id[1:])] for d in chosen)
    with pytest.raises(NoCandidateError, match="by familiar"):
        decide(foreign()[:1], guard.pool_, constraints=guard.constraints(), **choose)


def test_either_of_two_guards_may_reject():
    queries, names = labelled()
    alone = GuardedRouter(Novelty()).fit(queries, names).predict(queries)
    both = GuardedRouter(Novelty(), [Novelty(["spread"], 0.3)]).fit(queries, names).predict(queries)
    assert ((alone == REJECTED) <= (both == REJECTED)).all()
    assert (both == REJECTED).sum() > (alone == REJECTED).sum()


def test_the_score_by_hand():
    truth, predicted = np.array([0, 1, 2, 2]), np.array([0, 1, REJECTED, 2])
    found = gqr_score(truth, predicted, {"small": np.array([-1]), "large": np.array([0, 0, 0, -1])})
    assert found["own"] == 0.75
    assert found["foreign"] == pytest.approx((1.0 + 0.25) / 2)  # sets weigh alike
    assert found["gqr"] == pytest.approx(2 * 0.75 * 0.625 / 1.375)
    assert gqr_score(truth, truth, {"all": np.array([1, 2])})["gqr"] == 0.0


def test_domains_of_another_length_are_refused():
    queries, names = labelled()
    with pytest.raises(ShapeError, match="domains"):
        domain_outcomes(queries, names[:-1])
