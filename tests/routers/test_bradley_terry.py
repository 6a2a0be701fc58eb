from __future__ import annotations

import itertools

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.routers.bradley_terry import BradleyTerry, Elo, level, offset_of, ratings, wins_of
from polyroute.routers.constant import Constant
from polyroute.routers.heads import sigmoid
from polyroute.types import Candidate
from tests.routers.tables import queries_of, table_of

NONE = np.zeros((2, 2))


def test_two_candidates_are_apart_by_the_log_odds_of_their_wins():
    wins = np.array([[[0.0, 30.0], [10.0, 0.0]]])
    rating = ratings(wins, np.zeros((1, 2)), NONE)[0]
    assert rating[0] - rating[1] == pytest.approx(np.log(3.0))
    assert rating.sum() == pytest.approx(0.0)


def test_ratings_are_a_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 20, size=(1, 5, 5)) * (1.0 - np.eye(5))
    rating = ratings(wins, np.zeros((1, 5)), np.zeros((5, 5)))[0]
    played = wins[0] + wins[0].T
    assert np.abs((wins[0] - played * sigmoid(rating[:, None] - rating)).sum(axis=1)).max() < 1e-9


def test_pseudo_games_pull_to_where_they_were_drawn():
    start = np.array([[1.0, 0.0, -1.0]])
    assert ratings(np.zeros((1, 3, 3)), start, np.ones((3, 3))) == pytest.approx(start)
    one_win = np.zeros((1, 3, 3))
    one_win[0, 2, 0] = 1.0
    timid, bold = (ratings(one_win, start, np.full((3, 3), k))[0] for k in (100.0, 1.0))
    assert abs(timid[2] - start[0, 2]) < 0.05 < bold[2] - start[0, 2]


def test_who_never_lost_is_far_ahead_but_finitely():
    wins = np.zeros((1, 2, 2))
    wins[0, 0, 1] = 50.0
    rating = ratings(wins, np.zeros((1, 2)), np.full((2, 2), 0.5))[0]
    assert 3 < rating[0] - rating[1] < 10


def test_a_level_gives_the_mean_it_was_asked_for():
    rng = np.random.default_rng(1)
    rating, share = rng.normal(size=(6, 4)), rng.dirichlet(np.ones(4), size=6)
    middle = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
    quality = level(rating, middle, share)
    assert (share * quality).sum(axis=1) == pytest.approx(np.minimum(middle, 0.999), abs=1e-6)
    assert offset_of(np.zeros((1, 3)), np.array([0.5]), np.full((1, 3), 1 / 3)) == pytest.approx(0.0, abs=1e-9)


def test_ties_and_what_was_not_seen_are_no_wins():
    y = np.array([[1.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    seen = np.array([[True, True, False], [True, True, True]])
    wins = wins_of(y, seen)
    assert wins[0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert wins[1].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]


def rasch(n: int, ability: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, len(ability))) < sigmoid(ability - rng.normal(size=(n, 1)))).astype(float)


def test_decided_pairs_of_a_rasch_model_give_its_abilities():
    ability = np.array([1.2, 0.3, -0.4, -1.1])
    wins = wins_of(y := rasch(20_000, ability, 0), np.ones_like(y, bool)).sum(axis=0, dtype=float)[None]
    assert ratings(wins, np.zeros((1, 4)), np.zeros((4, 4)))[0] == pytest.approx(ability, abs=0.05)


def test_qualities_of_a_rasch_model_are_its_rates():
    y = rasch(4000, np.array([1.2, 0.3, -0.4, -1.1]), 3)
    x = np.ones((4000, 3), np.float32)
    router = BradleyTerry(sharpness=1.0).fit(table_of(x, y))
    mean = router.predict(queries_of(x[:1]), [Candidate(f"m{j}") for j in range(4)])["quality"].mean[0]
    assert mean == pytest.approx(y.mean(axis=0), abs=0.015)


def test_similar_queries_decide_and_sharpness_says_how_much():
    x = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)
    y = np.repeat([[1.0, 0.0], [0.0, 1.0]], 50, axis=0)  # each wins on one subject
    pool = [Candidate("m0"), Candidate("m1")]
    lead = []
    for sharpness in (1.0, 10.0, 1e4):
        mean = BradleyTerry(sharpness).fit(table_of(x, y)).predict(queries_of(np.eye(2)), pool)["quality"].mean
        assert mean[0] == pytest.approx(mean[1, ::-1], rel=1e-5)
        lead.append(mean[0, 0] - mean[0, 1])
    assert lead[0] == pytest.approx(0.0, abs=1e-5)
    assert lead[0] < lead[1] < lead[2]


def test_preferences_of_two_a_row_are_enough():
    rng = np.random.default_rng(4)
    ability, pairs = np.array([1.0, 0.0, -1.0]), list(itertools.combinations(range(3), 2))
    y = np.full((900, 3), np.nan)
    for i in range(900):
        a, b = pairs[i % 3]
        y[i, [a, b]] = (1.0, 0.0) if rng.random() < sigmoid(ability[a] - ability[b]) else (0.0, 1.0)
    x = np.ones((900, 2), np.float32)
    mean = BradleyTerry(1.0, 0.01).fit(table_of(x, y)).predict(
        queries_of(x[:1]), [Candidate(f"m{j}") for j in range(3)])["quality"].mean[0]  # fmt: skip
    assert np.diff(np.log(mean / (1 - mean))) == pytest.approx(np.diff(np.log(rates(y) / (1 - rates(y)))), abs=0.25)
    assert (np.diff(mean) < -0.1).all()


def test_who_is_better_at_a_subject_is_found_from_noisy_outcomes():
    rng = np.random.default_rng(0)
    subject = rng.integers(2, size=600)
    x = (np.eye(8)[subject] + 0.2 * rng.normal(size=(600, 8))).astype(np.float32)
    y = (rng.random((600, 2)) < np.where(subject[:, None] == np.arange(2), 0.7, 0.4)).astype(float)

    def right(sharpness: float) -> float:
        router = BradleyTerry(sharpness).fit(table_of(x[:450], y[:450]))
        mean = router.predict(queries_of(x[450:]), [Candidate("m0"), Candidate("m1")])["quality"].mean
        return float((mean.argmax(axis=1) == subject[450:]).mean())

    assert right(1.0) < 0.6
    assert right(1e3) > 0.9


def rates(y: np.ndarray) -> np.ndarray:
    return np.nanmean(y, axis=0)


def test_a_table_of_wins_too_large_to_keep_gives_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(50, 4)).astype(np.float32), rng.random((50, 3)).round(1)
    pool = [Candidate(f"m{j}") for j in range(3)]
    whole = BradleyTerry().fit(table_of(x, y)).predict(queries_of(x[:9]), pool)["quality"]
    monkeypatch.setattr("polyroute.routers.bradley_terry.KEPT", 60)
    parts = BradleyTerry().fit(table_of(x, y)).predict(queries_of(x[:9]), pool)["quality"]
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_prior_serves_strangers():
    x, y = np.ones((4, 2), np.float32), np.array([[1.0, 0.0]] * 4)
    router = BradleyTerry(prior=Constant("quality", 0.25, 0.1)).fit(table_of(x, y))
    mean, std = router.predict(queries_of(x[:1]), [Candidate("new"), Candidate("m0")])["quality"]
    assert (mean[0, 0], std[0, 0]) == (0.25, 0.1)
    assert mean[0, 1] > 0.5


def test_elo_moves_by_the_surprise_and_keeps_the_sum():
    router = Elo(step=400.0).fit(table_of(np.ones((1, 2)), np.array([[1.0, 0.0]])))
    assert router.rating_ == pytest.approx(np.array([0.5, -0.5]) * np.log(10.0))  # half a step of 400 points each
    router.update(table_of(np.ones((1, 2)), np.array([[0.0, 1.0]])))
    assert router.rating_.sum() == pytest.approx(0.0)
    assert router.rating_[1] > 0  # the upset is worth more than the expected win


def test_elo_settles_at_the_ratings_of_who_beats_whom_and_follows_change():
    ability = np.array([0.8, 0.0, -0.8])
    first = table_of(np.ones((4000, 1)), rasch(4000, ability, 5))
    router = Elo(step=4.0).fit(first)
    assert np.diff(router.rating_)[0] < 0 > np.diff(router.rating_)[1]
    router.update(table_of(np.ones((4000, 1)), rasch(4000, ability[::-1], 6)))
    assert np.diff(router.rating_)[0] > 0 < np.diff(router.rating_)[1]


@pytest.mark.parametrize("build", [lambda: BradleyTerry(0.5), lambda: BradleyTerry(kappa=0), lambda: Elo(0)])
def test_settings_that_make_no_sense_are_refused(build):
    with pytest.raises(ConfigError):
        build()
