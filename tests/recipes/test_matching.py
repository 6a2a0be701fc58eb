"""Online matching: shards merge to the serial run, the graph keeps who is near, newcomers stay reachable."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError
from polyroute.offline.online import best_static, regret, replay_online
from polyroute.policies.explore import UCB
from polyroute.recipes.matching import Edges, merged, online_matching
from polyroute.routers.constant import Constant
from polyroute.routers.context import Contexts, Contextual
from polyroute.types import Candidate, Objective, Outcomes, Profile, Query
from tests.recipes.topics import each_good_at_one_topic

QUALITY = Objective({"quality": 1.0})


@pytest.fixture(scope="module")
def stream():
    return each_good_at_one_topic(1500, np.random.default_rng(3))


def log_of(outcomes, rng):
    seen = np.eye(4, dtype=bool)[rng.integers(4, size=len(outcomes))]
    values = {"quality": np.where(seen, outcomes.values["quality"], np.nan)}
    return Outcomes(outcomes.queries, outcomes.pool, values, seen)


def test_replicas_merge_to_what_one_would_have_learned(stream):
    log = log_of(stream, np.random.default_rng(0))
    base = online_matching(stream.queries[:200])
    base.update(log.take(np.arange(300)))
    replicas = [deepcopy(base) for _ in range(3)]
    for r, replica in enumerate(replicas):
        replica.update(log.take(np.arange(300 + r, 1500, 3)))
    serial = deepcopy(base)
    serial.update(log.take(np.arange(300, 1500)))
    found = merged(reversed(replicas), base).predict(stream.queries[:50], stream.pool)["quality"]
    expected = serial.predict(stream.queries[:50], stream.pool)["quality"]
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, atol=1e-12)


def test_other_routers_are_not_merged(stream):
    base = online_matching(stream.queries[:50])
    other = Contextual(Constant("quality", 0.5, 0.1), base.contexts)
    with pytest.raises(ConfigError, match="online_matching"):
        merged([other], base)


def test_it_learns_to_match(stream):
    router = online_matching(stream.queries[:200], num_clusters=6)
    run = replay_online(router, UCB(1.0), stream, QUALITY, np.random.default_rng(0), batch=10)
    lost = regret(run, stream, QUALITY, best_static(stream, QUALITY))
    assert lost[-1] - lost[len(lost) // 2] < 0  # ahead of the best fixed model once it has learned


def test_the_graph_keeps_the_nearest_and_who_has_no_place():
    centres = np.eye(3, dtype=np.float32)
    contexts = Contexts(3, (), tasks=False, nearest=1, constant=False).fit(
        [Query(str(i), "", c) for i, c in enumerate(centres)]
    )
    order = contexts.centres_.argmax(axis=1)
    pool = [Candidate(f"near-{i}", profile=Profile(embedding=centres[i])) for i in range(3)] + [Candidate("new")]
    edges = Edges(contexts, top_w=1)
    graph = edges.graph(pool)
    assert graph[:, :3].argmax(axis=1).tolist() == order.tolist()
    assert graph[:, :3].sum(axis=1).tolist() == [1, 1, 1]
    assert graph[:, 3].all()
    allowed = edges([Query("q", "", np.array([0.1, 0.9, 0.0], np.float32))], pool)
    assert allowed.tolist() == [[False, True, False, True]]
    assert Edges(contexts, top_w=3).graph(pool).all()
    with pytest.raises(ConfigError, match="top_w"):
        Edges(contexts, top_w=0)
    with pytest.raises(NotFittedError):
        Edges(Contexts(3))
