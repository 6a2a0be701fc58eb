"""HyDRA: what a request needs decides, a new model is configuration, a conversation stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.constraints import healthy
from polyroute.errors import NoCandidateError
from polyroute.policies.session import Session
from polyroute.recipes.hydra import FLOOR, HyDRA
from polyroute.routers.match import Match
from polyroute.routers.price import Price
from polyroute.routers.running import RunningMean
from polyroute.types import Candidate, Profile
from tests.routers.tables import table_of


def model(name, price, law, maths):
    return Candidate(name, profile=Profile(price, price, ability={"law": law, "maths": maths}))


POOL = [model("small", 0.1, 0.1, 0.1), model("lawyer", 1.0, 0.9, 0.1), model("large", 5.0, 0.9, 0.9)]


@pytest.fixture(scope="module")
def hydra():
    """Easy and hard questions of two kinds: entry 0 says which kind, entry 1 how hard."""
    rng = np.random.default_rng(0)
    kind, hard = rng.integers(2, size=600), rng.integers(2, size=600)
    x = np.stack([2.0 * kind - 1, 2.0 * hard - 1], axis=1) + 0.05 * rng.normal(size=(600, 2))
    wrong = rng.random((600, 5)) < np.where(hard, 0.9, 0.02)[:, None]
    table = replace(table_of(x.astype(np.float32), 1.0 - wrong), labels={"dataset": np.where(kind, "maths", "law")})
    match = Match(l2=0.1).fit(table)
    match.calibrate(table.queries, POOL)
    return HyDRA(match, Price(RunningMean()), tau=0.05), table, kind, hard


def test_the_cheapest_that_covers_the_need(hydra):
    router, table, kind, hard = hydra
    choice = router.choose(table.queries, POOL)
    assert (choice[hard == 0] == 0).mean() > 0.95
    assert (choice[(hard == 1) & (kind == 0)] == 1).mean() > 0.95
    assert (choice[(hard == 1) & (kind == 1)] == 2).mean() > 0.95


def test_a_new_model_is_configuration(hydra):
    router, table, kind, hard = hydra
    pool = [*POOL, model("mathematician", 0.5, 0.1, 0.9)]
    choice = router.choose(table.queries, pool)
    assert (choice[(hard == 1) & (kind == 1)] == 3).mean() > 0.95
    assert (choice[hard == 0] == 0).mean() > 0.95


def test_gates_come_first(hydra):
    router, table, _, _ = hydra
    gated = HyDRA(router.match, router.cost, tau=0.05, gates=[healthy({"small", "lawyer"})])
    assert (gated.choose(table.queries[:20], POOL) == 2).all()
    with pytest.raises(NoCandidateError, match="small by healthy"):
        HyDRA(router.match, router.cost, gates=[healthy({c.id for c in POOL})]).choose(table.queries[:1], POOL)


def first(mask):
    return int(np.flatnonzero(mask)[0])


def test_a_first_turn_is_the_choice_and_a_conversation_stays_where_it_is_covered(hydra):
    router, table, kind, hard = hydra
    for i in range(30):
        assert router.turn(table.queries[i], POOL, None, 0.0).column == router.choose([table.queries[i]], POOL)[0]
    easy = table.queries[first((hard == 0) & (kind == 1))]
    assert router.match.needs([easy]).mean.max() < FLOOR
    kept = router.turn(easy, POOL, Session("large", 0.0), 5.0)
    assert (kept.column, kept.switched) == (2, False)  # an easy turn does not send a hard conversation down
    law = table.queries[first((hard == 1) & (kind == 0))]
    assert router.turn(law, POOL, Session("large", 0.0), 5.0).column == 2  # covered: no move, though lawyer is cheaper
    assert router.turn(law, POOL, None, 5.0).column == 1


def test_a_conversation_moves_up_when_it_must_and_not_inside_a_tool_loop(hydra):
    router, table, kind, hard = hydra
    hardest = table.queries[first((hard == 1) & (kind == 1))]
    assert router.turn(hardest, POOL, Session("small", 0.0), 5.0).column == 2
    assert router.turn(hardest, POOL, Session("small", 0.0), 5.0, in_tool_loop=True).column == 0
