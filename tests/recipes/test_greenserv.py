"""GreenServ: starts from nothing, learns from chosen outcomes, takes models in and out while it runs."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.offline.online import best_static, regret, replay_online
from polyroute.policies.explore import UCB, Thompson
from polyroute.recipes.greenserv import contexts, greenserv
from polyroute.types import Candidate, Objective
from tests.recipes.topics import each_good_at_one_topic

QUALITY = Objective({"quality": 1.0})


@pytest.fixture(scope="module")
def world():
    found = each_good_at_one_topic(1600, np.random.default_rng(3))
    apart, stream = found.take(np.arange(300)), found.take(np.arange(300, 1600))
    return contexts(apart.queries, apart.labels["dataset"]), apart, stream


def test_before_any_outcome_nothing_is_known_of_anyone(world):
    encoder, apart, stream = world
    mean, std = greenserv(encoder, stream.pool, apart.queries).predict(stream.queries[:5], stream.pool)["quality"]
    assert (mean == 0.5).all()
    assert (std == 0.5).all()


@pytest.mark.parametrize("policy", [UCB(1.0), Thompson()], ids=["ucb", "thompson"])
def test_it_gets_ahead_of_the_best_fixed_model(world, policy):
    encoder, apart, stream = world
    router = greenserv(encoder, stream.pool, apart.queries)
    run = replay_online(router, policy, stream, QUALITY, np.random.default_rng(0), batch=10)
    lost = regret(run, stream, QUALITY, best_static(stream, QUALITY))
    assert lost[-1] - lost[len(lost) // 2] < 0
    assert run.value.mean() > stream.values["quality"].mean() + 0.1


def test_a_model_that_comes_later_is_adopted_and_one_that_goes_is_not_chosen(world):
    encoder, apart, stream = world
    new = best_static(stream, QUALITY)
    router = greenserv(encoder, stream.pool, apart.queries)

    def present(step):
        there = np.ones(4, bool)
        there[new] = 500 <= step < 1200
        return there

    run = replay_online(router, UCB(1.0), stream, QUALITY, np.random.default_rng(1), present=present, batch=10)
    assert (run.choice[:500] != new).all()
    assert (run.choice[1200:] != new).all()
    assert (run.choice[700:1200] == new).mean() > 0.15


def test_a_candidate_never_met_is_served_from_the_belief(world):
    encoder, apart, stream = world
    router = greenserv(encoder, stream.pool, apart.queries)
    router.update(stream.take(np.arange(50)))
    mean, _ = router.predict(stream.queries[:2], [Candidate("new"), stream.pool[0]])["quality"]
    assert mean[0, 0] == 0.5
    assert mean[0, 1] != 0.5
