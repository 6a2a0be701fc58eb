"""A2FM: modes said in tags, the adaptive reward, and a gate that learns from forced rollouts."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.flows.traces import read_mode
from polyroute.recipes.a2fm import MODES, ModeRouter, rollouts
from polyroute.types import Query


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("<instant> 4", "instant"),
        ("  \n<Reasoning>\nlet me see", "reasoning"),
        ("<agentic></agentic>", "agentic"),
        ("<classification>instant</classification> 4", "instant"),
        ("< instant > 4", None),
        ("4 <instant>", None),
        ("<fast> 4", None),
        ("", None),
        ("instant", None),
    ],
)
def test_only_a_first_tag_that_is_a_mode_counts(text, mode):
    assert read_mode(text, MODES) == mode


@pytest.fixture(scope="module")
def world():
    """Easy queries, on which every mode is right, and hard ones, on which the instant mode fails."""
    rng = np.random.default_rng(0)
    hard = rng.random(300) < 0.5
    x = np.c_[np.where(hard, 1.0, -1.0), rng.normal(size=(300, 3))].astype(np.float32)
    probability = np.where(hard[:, None], [0.05, 0.7, 0.9], [0.9, 0.92, 0.95])
    return [Query(f"q{i}", embedding=row) for i, row in enumerate(x)], rollouts(probability, 3, rng), hard


def test_easy_queries_go_to_the_instant_mode_and_hard_ones_do_not(world):
    queries, success, hard = world
    adaptive, plain = ModeRouter().fit(queries, success), ModeRouter(adaptive=False).fit(queries, success)
    instant = adaptive.choose(queries) == 0
    assert instant[~hard].mean() > 0.9
    assert instant[hard].mean() < 0.1
    assert (plain.choose(queries) == 0).mean() < 0.3, "accuracy alone sees no reason to be quick"


def test_rewards_are_those_of_the_rollouts(world):
    _, success, _ = world
    router = ModeRouter()
    reward = router.rewards(success)
    share = success[:, 0].mean(axis=1)
    assert reward[:, 0] == pytest.approx(share)
    easy = share > 0.5
    assert reward[easy, 2] == pytest.approx(success[easy, 2].mean(axis=1) * (1 - share[easy] ** 2))
    assert reward[~easy, 2] == pytest.approx(success[~easy, 2].mean(axis=1))


def test_a_reply_without_a_mode_is_decided_by_the_gate(world):
    queries, success, hard = world
    router = ModeRouter().fit(queries, success)
    easy = queries[int(np.flatnonzero(~hard)[0])]
    assert router.follow("<agentic> searching", easy) == ("agentic", True)
    assert router.follow("The answer is 4", easy) == ("instant", False)


def test_wrong_tables_are_named(world):
    queries, success, _ = world
    with pytest.raises(ShapeError, match="success"):
        ModeRouter().fit(queries, success[:, :2])
    with pytest.raises(ShapeError, match="success"):
        ModeRouter().fit(queries[:5], success)
    with pytest.raises(OutcomesError, match="success"):
        ModeRouter().fit(queries, np.where(success == 1, np.nan, 0.0))
    with pytest.raises(NotFittedError):
        ModeRouter().choose(queries)
    with pytest.raises(ConfigError, match="modes"):
        ModeRouter(["instant"])


def test_entropy_keeps_the_gate_undecided(world):
    queries, success, _ = world
    odds = [ModeRouter(entropy=e).fit(queries, success).policy_.odds(queries, ModeRouter().pool) for e in (0.0, 5.0)]
    assert odds[1].max(axis=1).mean() < 0.6 < odds[0].max(axis=1).mean()
