from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.routers.newcomers import (
    KINDS,
    LEVELS,
    LIMIT,
    Newcomers,
    ease,
    keys_of,
    learn_newcomers,
    newcomers_among,
    sigmoid,
)
from polyroute.types import Query

QUERIES = [Query(f"q{i}", f"text {i}") for i in range(2000)]


def drawn(rng, theta, slope=1.0, n=2000):
    """Outcomes [n, k] of candidates with theta [c, k] on queries of scattered ease, and each query's task."""
    member = np.arange(n) % len(theta)
    easy = slope * rng.normal(size=n)
    return (rng.random((n, theta.shape[1])) < sigmoid(theta[member] + easy[:, None])).astype(float), member


def learned(rng, k=6, c=3, slope=1.0, spread=0.7):
    theta = rng.normal(size=(1, k)) * spread + 0.2 * rng.normal(size=(c, k))
    y, member = drawn(rng, theta, slope)
    table = np.stack([y[member == t].mean(axis=0) for t in range(c)])
    return learn_newcomers(y, np.ones_like(y, bool), member, np.arange(c), table, QUERIES), y, member


def plain(c=1, ability=0.5, slope=0.0):
    """One level of ease, so that everything is known in closed form but one integral."""
    covariance = ability + 0.1 * np.eye(c)
    return Newcomers(
        np.zeros(c), covariance, np.array(ability), np.array(slope), np.zeros((c, 1)), np.ones((c, 1)),
        np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.float32),
    )  # fmt: skip


def by_integral(newcomers, right, wrong):
    """Posterior mean and variance of the score on the one task, by a fine grid over theta."""
    theta = np.linspace(-9, 9, 20001)
    chance, density = sigmoid(theta), np.zeros_like(theta)
    for weight, wider, shift in KINDS:
        variance = newcomers.covariance[0, 0] + (wider - 1) * newcomers.ability
        away = theta - shift * np.sqrt(newcomers.ability)
        density += weight * np.exp(-0.5 * away**2 / variance) / np.sqrt(variance)
    density *= chance**right * (1 - chance) ** wrong
    density /= density.sum()
    mean = density @ chance
    return mean, density @ (chance - mean) ** 2


@pytest.mark.parametrize(("right", "wrong"), [(3, 2), (20, 10), (27, 3), (2, 28)])
def test_belief_is_the_posterior_of_the_integral(right, wrong):
    newcomers = plain()
    score = np.repeat([1.0, 0.0], [right, wrong])
    mean, variance = newcomers.believe(np.zeros(len(score), np.intp), np.zeros(len(score)), score)
    wanted, spread = by_integral(newcomers, right, wrong)
    np.testing.assert_allclose(mean, wanted, atol=0.012)
    np.testing.assert_allclose(np.sqrt(variance), np.sqrt(spread), rtol=0.15)


def test_answers_on_one_task_tell_of_another_and_less():
    newcomers = plain(c=2)
    mean, variance = newcomers.believe(np.zeros(30, np.intp), np.zeros(30), np.ones(30))
    none = newcomers.believe(np.zeros(0, np.intp), np.zeros(0), np.zeros(0))
    assert mean[0] > mean[1] > none[0][1] + 0.1
    assert variance[0] < variance[1]


def test_half_right_on_hard_queries_is_better_than_half_right_on_easy_ones():
    newcomers = learned(np.random.default_rng(0))[0]
    task, half = np.arange(30) % 3, (np.arange(30) % 2).astype(float)
    hard, easy = (newcomers.believe(task, np.full(30, away), half)[0] for away in (-1.0, 1.0))
    assert (hard > easy + 0.08).all()


def test_counting_how_hard_queries_are_comes_nearer_to_the_truth():
    error: dict[str, list[float]] = {"net": [], "bare": []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        _, y, member = learned(rng, k=7, slope=2.0, spread=1.5)
        rest = learn_newcomers(y[:, 1:], np.ones(y[:, 1:].shape, bool), member, np.arange(3),
                               np.stack([y[member == t, 1:].mean(axis=0) for t in range(3)]), QUERIES)  # fmt: skip
        truth = np.array([y[member == t, 0].mean() for t in range(3)])
        for draw in range(6):
            rows = np.random.default_rng([seed, draw]).permutation(len(y))[:30]
            _, task, easy = rest.find(keys_of([QUERIES[i] for i in rows]))
            for name, known in (("net", easy), ("bare", 0 * easy)):
                error[name].append(((rest.believe(task, known, y[rows, 0])[0] - truth) ** 2).mean())
    assert np.mean(error["net"]) < 0.75 * np.mean(error["bare"])


def test_many_answers_settle_it():
    rng = np.random.default_rng(1)
    newcomers, _, _ = learned(rng)
    y, member = drawn(rng, np.array([[1.0], [1.2], [0.8]]))
    task = member[:450]
    mean, variance = newcomers.believe(task, np.zeros(450), y[:450, 0])
    np.testing.assert_allclose(mean, [y[member == t, 0].mean() for t in range(3)], atol=0.08)
    assert np.sqrt(variance).max() < 0.06


def test_slope_grows_with_what_candidates_find_hard_together():
    slopes = [float(learned(np.random.default_rng(2), slope=s)[0].slope) for s in (0.0, 3.0)]
    assert slopes[0] < slopes[1]


def test_variances_follow_the_known_candidates():
    narrow, wide = (learned(np.random.default_rng(3), spread=s)[0] for s in (0.05, 2.0))
    assert narrow.ability < 0.25 < 1.0 < wide.ability
    assert (np.linalg.eigvalsh(wide.covariance) > 0).all()


def test_one_known_candidate_and_one_task_are_enough():
    y = (np.arange(40) % 4 > 0).astype(float)[:, None]
    one = learn_newcomers(
        y, np.ones((40, 1), bool), np.zeros(40, int), np.zeros(1, int), np.array([[0.75]]), QUERIES[:40]
    )
    mean, variance = one.believe(np.zeros(0, np.intp), np.zeros(0), np.zeros(0))
    assert 0.6 < mean[0] < 0.9
    assert variance[0] > 0.005


def test_levels_keep_what_they_sum_up():
    newcomers, _, _ = learned(np.random.default_rng(4))
    assert newcomers.level.shape == newcomers.mass.shape == (3, LEVELS)
    np.testing.assert_allclose(newcomers.mass.sum(axis=1), 1.0)
    np.testing.assert_allclose((newcomers.mass * newcomers.level).sum(axis=1), 0.0, atol=1e-9)
    assert (np.diff(newcomers.level, axis=1) >= -1e-9).all()


def test_ease_is_by_hand():
    expected = np.full((3, 2), 0.5)
    y, seen = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), np.array([[True] * 2, [True] * 2, [False] * 2])
    chance = 0.5 + 1.0 / 3.5
    np.testing.assert_allclose(
        ease(y, seen, expected), np.array([1, -1, 0]) * np.log(chance / (1 - chance)), atol=1e-12
    )


def test_a_query_is_found_by_its_text_or_else_its_embedding():
    newcomers = learned(np.random.default_rng(5))[0]
    known, task, _ = newcomers.find(keys_of([Query("other id", "text 7"), Query("q7", "new text")]))
    assert known.tolist() == [True, False]
    assert task.tolist() == [1, 0]
    bare = [Query("a", embedding=np.ones(2, np.float32)), Query("b", embedding=np.ones(2, np.float32)), Query("c")]
    one, same, none = keys_of(bare)
    assert one == same != none


def test_newcomers_are_those_of_few_answers_beside_the_others():
    seen = np.zeros((4000, 4), bool)
    for j, count in enumerate((4000, LIMIT - 1, LIMIT, 0)):
        seen[:count, j] = True
    assert newcomers_among(seen).tolist() == [False, True, False, True]
    assert not newcomers_among(seen[:600, :3]).any()


def test_saved_arrays_of_other_shapes_are_refused():
    held = plain(c=2)._asdict()
    assert Newcomers.of(**held).mean.shape == (2,)
    with pytest.raises(ShapeError, match="covariance"):
        Newcomers.of(**held | {"covariance": np.eye(3)})
