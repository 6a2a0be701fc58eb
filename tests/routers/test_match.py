"""Needs against profiles, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.routers.match import SHRINK, Match, means_by, needs_from
from polyroute.types import Candidate, Profile
from tests.routers.tables import table_of, toy

POOL = [
    Candidate("weak", profile=Profile(ability={"law": 10.0, "maths": 30.0})),
    Candidate("lawyer", profile=Profile(ability={"law": 50.0, "maths": 30.0})),
    Candidate("strong", profile=Profile(ability={"law": 40.0, "maths": 90.0})),
]


def test_needs_are_the_share_that_fails_in_the_query_s_own_dimension():
    nan = np.nan
    table = table_of(np.eye(3, dtype=np.float32), np.array([[1, 0, 0, 0.5], [1, 1, nan, nan], [nan] * 4]))
    needs = needs_from(table, np.array(["a", "b", "a"]), ["a", "b"])
    assert needs[:2].tolist() == [[0.625, 0.0], [0.0, 0.0]]
    assert np.isnan(needs[2]).all()


def test_means_are_drawn_to_the_candidate_s_own():
    table = table_of(np.eye(4, dtype=np.float32), np.array([[1.0], [1.0], [0.0], [0.0]]))
    found = means_by(table, np.array(["a", "a", "b", "c"]), ["a", "b", "d"])["m0"]
    half = 0.5 * SHRINK
    assert found == pytest.approx([(2 + half) / (2 + SHRINK), half / (1 + SHRINK), 0.5])


def test_profiles_stand_in_the_band_of_the_needs():
    table = toy(200, seed=3, missing=0.0)
    router = Match().fit(table).calibrate(table.queries, POOL)
    needs = router.needs(table.queries).mean
    low, high = np.percentile(needs, [10, 90], axis=0)
    found = router.profiles(POOL)
    assert router.names_ == ["law", "maths"]
    assert found[0] == pytest.approx([low[0], low[1]])
    assert found[1] == pytest.approx([high[0], low[1]])
    assert found[2] == pytest.approx([low[0] + 0.75 * (high[0] - low[0]), high[1]])


def test_a_surplus_does_not_make_up_for_a_lack():
    table = toy(200, seed=3, missing=0.0)
    router = Match(weights={"law": 1.0, "maths": 2.0}).fit(table).calibrate(table.queries, POOL)
    need, can = router.needs(table.queries[:20]).mean, router.profiles(POOL)
    weight = np.array([1.0, 2.0]) / (router.high_ - router.low_)
    weight /= weight.sum()
    estimates = router.predict(table.queries[:20], POOL)
    for i in range(20):
        for j in range(3):
            by_hand = sum(weight[k] * max(0.0, need[i, k] - can[j, k]) for k in range(2))
            assert estimates["shortfall"].mean[i, j] == pytest.approx(by_hand)
    assert estimates["capability"].mean[5] == pytest.approx(can @ weight)


def test_hard_questions_of_a_dimension_need_more_of_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    chance = np.where(x[:, :1] > 0, 0.2, 0.9)
    table = table_of(x, (rng.random((400, 6)) < chance).astype(float))
    table = replace(table, labels={"dataset": np.where(x[:, 1] > 0, "a", "b")})
    need = Match().fit(table).needs(table.queries).mean
    own = np.where(x[:, 1] > 0, need[:, 0], need[:, 1])
    other = np.where(x[:, 1] > 0, need[:, 1], need[:, 0])
    assert own[x[:, 0] > 0].mean() > own[x[:, 0] < 0].mean() + 0.15
    assert own.mean() > other.mean() + 0.1


def test_without_profiles_the_means_seen_stand_in_and_a_stranger_is_an_error():
    table = toy(100)
    router = Match().fit(table)
    router.predict(table.queries[:3], table.pool)
    with pytest.raises(UnknownCandidateError, match="'stranger'"):
        router.predict(table.queries[:3], [table.pool[0], Candidate("stranger")])
    assert router.predict(table.queries[:3], POOL)["shortfall"].mean.shape == (3, 3)  # a profile is enough


def test_what_is_wrong_is_named():
    table = toy()
    with pytest.raises(OutcomesError, match="labels\\['topic'\\]"):
        Match("topic").fit(table)
    with pytest.raises(OutcomesError, match="none for maths"):
        Match(dimensions={"law": "words"}).fit(table)
    with pytest.raises(ConfigError, match="band"):
        Match(band=(90, 10))
    with pytest.raises(ConfigError, match=r"weights.law"):
        Match(weights={"law": -1.0})
    with pytest.raises(ConfigError, match="one above 0 among law, maths"):
        Match(weights={"other": 1.0}).fit(table).predict(table.queries, table.pool)
    with pytest.raises(NotFittedError):
        Match().needs([])
