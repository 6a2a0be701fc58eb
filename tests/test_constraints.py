import numpy as np
import pytest

from polyroute.constraints import familiar, fits_context, healthy, in_region, offers_needs, only, where
from polyroute.decide import name_of
from polyroute.errors import ConfigError
from polyroute.types import Candidate, Estimate, Profile, Query

POOL = [
    Candidate("small", profile=Profile(context=1000, region="eu")),
    Candidate("seeing", profile=Profile(context=8000, offers=frozenset({"vision", "tools"}), region="us")),
    Candidate("unknown"),
]
QUERIES = [
    Query("plain"),
    Query("picture", needs=frozenset({"vision"}), num_tokens=900, max_output=101),
    Query("long", needs=frozenset({"vision", "audio"}), num_tokens=7000, max_output=1000),
]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (offers_needs, [[1, 1, 1], [0, 1, 0], [0, 0, 0]]),
        (fits_context, [[1, 1, 1], [0, 1, 1], [0, 1, 1]]),
        (in_region({"eu"}), [[1, 0, 0]] * 3),
        (healthy({"small"}), [[0, 1, 1]] * 3),
        (only(["unknown", "small"]), [[1, 0, 1]] * 3),
    ],
    ids=["offers_needs", "fits_context", "in_region", "healthy", "only"],
)
def test_who_may_serve(constraint, expected):
    passes = constraint(QUERIES, POOL)
    assert passes.dtype == bool
    assert passes.astype(int).tolist() == expected
    for n, m in ((0, 3), (3, 0), (0, 0), (1, 2)):
        assert constraint(QUERIES[:n], POOL[:m]).tolist() == passes[:n, :m].tolist()
        assert constraint(QUERIES[:n], POOL[:m]).shape == (n, m)


def test_context_holds_prompt_and_completion_to_the_token():
    pool = [Candidate("c", profile=Profile(context=100))]
    sizes = [(60, 40), (60, 41), (100, None), (101, None), (None, 100), (None, 101), (None, None)]
    queries = [Query(str(size), num_tokens=size[0], max_output=size[1]) for size in sizes]
    assert fits_context(queries, pool)[:, 0].tolist() == [True, False, True, False, True, False, True]


def test_health_is_read_at_each_call():
    down = set()
    constraint = healthy(down)
    assert constraint(QUERIES[:1], POOL).all()
    down.add("seeing")
    assert constraint(QUERIES[:1], POOL).tolist() == [[True, False, True]]


def test_names_are_what_a_person_reads():
    constraints = [offers_needs, fits_context, in_region({"us", "eu"}), healthy(()), only(()), where("pii", bool, ())]
    assert [name_of(c) for c in constraints] == [
        "offers_needs",
        "fits_context",
        "in_region(eu, us)",
        "healthy",
        "only",
        "pii",
    ]


@pytest.mark.parametrize("build", [in_region, healthy, only])
def test_a_bare_text_is_not_a_set_of_names(build):
    with pytest.raises(ConfigError, match=r"expected a set of names, got 'europe'. Write \{'europe'\}"):
        build("europe")


def test_a_query_without_needs_passes_a_candidate_that_offers_nothing():
    assert np.array_equal(offers_needs([Query("a")], POOL), [[True, True, True]])


def test_flagged_queries_go_where_the_guard_says_and_others_anywhere():
    ids = {POOL[1].id}
    constraint = where("pii", lambda query: query.id == "flagged", ids)
    queries = [Query("flagged"), Query("plain")]
    assert constraint(queries, POOL).tolist() == [[False, True, False], [True, True, True]]
    assert not where("pii", lambda query: True, ())(queries, POOL).any()
    with pytest.raises(ConfigError, match="ids: expected a set of names"):
        where("pii", bool, "cheap")


class Foreign:
    def predict(self, queries, pool):
        return {"novelty": Estimate(np.array([[0.2, 1.0, 1.1]]).repeat(len(queries), axis=0))}


def test_a_candidate_to_whom_a_query_is_foreign_is_ruled_out():
    assert familiar(Foreign())([Query("a"), Query("b")], POOL).tolist() == [[True, True, False]] * 2
    assert familiar(Foreign(), most=0.5)([Query("a")], POOL).tolist() == [[True, False, False]]
    assert name_of(familiar(Foreign())) == "familiar"
