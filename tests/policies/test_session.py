"""A conversation moves only when it pays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.policies.explore import Thompson
from polyroute.policies.greedy import Greedy
from polyroute.policies.session import (
    Session,
    Sessions,
    Sticky,
    StickyConfig,
    cached_saving,
    keep_or_switch,
    warmth_of,
)
from polyroute.types import Candidate, Estimate, Objective, Profile

IDS = ["cheap", "middle", "dear"]
HELD = Session("middle", last_s=100.0, turns=3, tokens=900)
QUALITY = Objective({"quality": 1.0})


@pytest.mark.parametrize(
    ("gain", "warmth", "kept"),
    [(0.19, 0.0, True), (0.21, 0.0, False), (0.21, 1.0, True), (0.39, 1.0, True), (0.41, 1.0, False), (-0.3, 0, True)],
)
def test_a_move_must_gain_more_than_its_price(gain, warmth, kept):
    found = keep_or_switch(IDS, [0.0, 0.5, 0.5 + gain], HELD, now_s=101.0, warmth=warmth)
    assert found.switched is not kept
    assert found.column == (1 if kept else 2)
    assert found.price == pytest.approx(0.2 + 0.2 * warmth)  # margin + handoff + stay bias, and the warm cache
    assert found.gain == pytest.approx(max(gain, 0.0))


def test_a_first_turn_takes_the_best():
    found = keep_or_switch(IDS, [0.1, 0.5, 0.6])
    assert (found.column, found.switched, found.because) == (2, False, "first turn")


def test_a_tool_loop_is_locked_whatever_is_gained():
    found = keep_or_switch(IDS, [0.0, 0.0, 100.0], HELD, now_s=101.0, in_tool_loop=True)
    assert (found.column, found.price) == (1, math.inf)


def test_even_a_tool_loop_leaves_one_that_may_not_serve():
    found = keep_or_switch(
        IDS, [0.3, 0.9, 0.2], HELD, now_s=101.0, in_tool_loop=True, allowed=np.array([True, False, True])
    )
    assert (found.column, found.switched) == (0, True)
    assert found.because == "middle is not allowed this turn"


def test_a_candidate_that_came_lately_stays_its_turns():
    config = StickyConfig(min_turns=2)
    utility = [0.0, 0.0, 9.0]
    assert not keep_or_switch(IDS, utility, HELD._replace(turns=1), now_s=101.0, config=config).switched
    assert keep_or_switch(IDS, utility, HELD._replace(turns=2), now_s=101.0, config=config).switched


def test_it_forgets_after_the_idle_time_and_not_before():
    utility = [0.0, 0.5, 0.6]
    assert keep_or_switch(IDS, utility, HELD, now_s=400.0).column == 1
    found = keep_or_switch(IDS, utility, HELD, now_s=400.1)
    assert (found.column, found.because) == (2, "the session is forgotten")


def test_a_turn_that_says_nothing_keeps_the_model_and_one_that_says_a_lot_may_move():
    utility = [0.9, 0.1, 0.2]
    assert keep_or_switch(IDS, utility, HELD, now_s=101.0, trust=0.0).column == 1
    assert keep_or_switch(IDS, utility, HELD, now_s=101.0, trust=0.4).column == 1
    assert keep_or_switch(IDS, utility, HELD, now_s=101.0, trust=1.0).column == 0


def test_a_model_gone_from_the_pool_is_no_bond():
    assert keep_or_switch(IDS, [0.0, 0.0, 0.1], Session("gone", 100.0), now_s=101.0).column == 2


def test_nobody_allowed_and_shapes():
    with pytest.raises(NoCandidateError, match="cheap by `allowed`"):
        keep_or_switch(IDS, [0.0] * 3, allowed=[False] * 3)
    with pytest.raises(ShapeError, match=r"utility: expected shape \(3,\), got \(2,\)"):
        keep_or_switch(IDS, [0.0] * 2)


@pytest.mark.parametrize(
    "wrong", [{"margin": -0.1}, {"handoff": math.nan}, {"stay_bias": math.inf}, {"min_turns": -1}, {"forget_s": 0}]
)
def test_a_price_that_is_none_is_an_error(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StickyConfig(**wrong)


def test_around_greedy_it_chooses_as_keep_or_switch():
    rng = np.random.default_rng(0)
    for _ in range(200):
        utility = rng.random(3)
        allowed = rng.random(3) < 0.8
        if not allowed.any():
            continue
        now, loop = float(rng.choice([150.0, 450.0])), bool(rng.random() < 0.2)
        warmth = float(rng.random())
        policy = Sticky(IDS, HELD, now_s=now, warmth=warmth, in_tool_loop=loop)
        chosen = policy.decide({"quality": Estimate(utility[None])}, QUALITY, allowed[None], rng)
        kept = keep_or_switch(IDS, utility, HELD, allowed=allowed, now_s=now, warmth=warmth, in_tool_loop=loop)
        assert chosen.index.tolist() == [[kept.column]]
        assert chosen.weight[0, 0] == utility[kept.column]  # without the price


def test_around_thompson_the_propensity_is_that_of_the_priced_utilities():
    estimates = {"quality": Estimate(np.array([[0.5, 0.5, 0.8]]), np.full((1, 3), 0.2))}
    priced = {"quality": Estimate(np.array([[0.1, 0.5, 0.4]]), np.full((1, 3), 0.2))}
    expected = Thompson().probabilities(priced, QUALITY, np.ones((1, 3), bool))[0]
    counts = np.zeros(3)
    for seed in range(300):
        policy = Sticky(IDS, HELD, Thompson(), now_s=101.0)
        chosen = policy.decide(estimates, QUALITY, np.ones((1, 3), bool), np.random.default_rng(seed))
        j = int(chosen.index[0, 0])
        counts[j] += 1
        assert chosen.propensity is not None
        assert chosen.propensity[0, 0] == pytest.approx(expected[j])
    assert counts / 300 == pytest.approx(expected, abs=0.1)


def test_several_rows_and_several_chosen():
    policy = Sticky(IDS, HELD, Greedy(k=3), now_s=101.0)
    estimates = {"quality": Estimate(np.array([[0.0, 0.5, 0.6], [0.0, 0.5, 0.6]]))}
    allowed = np.array([[True, True, True], [True, False, True]])
    chosen = policy.decide(estimates, QUALITY, allowed, np.random.default_rng(0))
    assert chosen.index.tolist() == [[1, 2, 0], [2, 0, -1]]
    assert chosen.weight.tolist() == [[0.5, 0.6, 0.0], [0.6, 0.0, 0.0]]


def test_the_book_counts_turns_forgets_and_stays_small():
    book = Sessions(capacity=2, forget_s=10.0)
    assert book.look("a", 0.0) is None
    assert book.served("a", "cheap", 0.0).turns == 1
    assert book.served("a", Candidate("cheap"), 5.0, tokens=700) == Session("cheap", 5.0, 2, 700)
    assert book.served("a", "dear", 6.0).turns == 1
    assert book.look("a", 16.0) == Session("dear", 6.0, 1, 0)
    assert book.look("a", 16.1) is None
    assert book.look("a", 6.0) is None  # once forgotten it stays so
    for key in "bcd":
        book.served(key, "cheap", 20.0)
    assert list(book.book) == ["c", "d"]


def test_warmth_and_what_it_saves():
    assert warmth_of(HELD, 1000) == 0.9
    assert warmth_of(HELD, 500) == 1.0
    assert warmth_of(HELD, None) == 1.0
    assert cached_saving(Profile(price_in=3.0), 100_000) == pytest.approx(0.27)
