"""IRT against worlds it describes: what was simulated comes back, and what cannot be known is doubted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from polyroute.artefact import load, save
from polyroute.errors import NotFittedError, OutcomesError
from polyroute.routers.irt import (
    IRT,
    SKILL_SCALE,
    SKILL_SPREAD,
    SMALL,
    abilities_and_difficulty,
    difficult,
    softmax_regression,
)
from polyroute.types import Array, Candidate, Outcomes, Profile, Query
from tests.routers.tables import queries_of

SKILLS = ("code", "logic", "math")


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


class World(NamedTuple):
    outcomes: Outcomes
    ability: Array  # [m, s]
    difficulty: Array  # [n]
    chance: Array  # [n, m] the probability each outcome was drawn with


def world(n: int = 4000, m: int = 6, d: int = 12, *, seed: int = 0, missing: float = 0.0) -> World:
    """Queries of three skills told apart by where they lie, with a difficulty linear in the embedding."""
    rng = np.random.default_rng(seed)
    skill = rng.integers(3, size=n)
    x = rng.normal(size=(n, d))
    x[:, :3] = 4.0 * np.eye(3)[skill] + 0.3 * rng.normal(size=(n, 3))
    slope = np.r_[np.zeros(3), rng.normal(size=d - 3) * 0.7]
    difficulty = x @ slope
    ability = np.linspace(-1.5, 1.5, m)[:, None] + 0.7 * rng.normal(size=(m, 3))
    chance = sigmoid(ability[:, skill].T - difficulty[:, None])
    y = (rng.random((n, m)) < chance).astype(float)
    seen = rng.random((n, m)) >= missing
    pool = [Candidate(f"m{j}") for j in range(m)]
    labels = {"skill": np.array(SKILLS)[skill]}
    outcomes = Outcomes(queries_of(x.astype(np.float32)), pool, {"quality": np.where(seen, y, np.nan)}, seen, labels)
    return World(outcomes, ability, difficulty, chance)


@pytest.fixture(scope="module")
def known() -> World:
    return world()


@pytest.fixture(scope="module")
def router(known: World) -> IRT:
    return IRT(l2=1.0, shrink=0.1).fit(known.outcomes)


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_simulated_abilities_come_back(known: World, router: IRT):
    # a skill's level may sit in the abilities or in the difficulty: compared between candidates
    true, found = known.ability - known.ability.mean(axis=0), router.ability_ - router.ability_.mean(axis=0)
    assert tuple(router.skills_) == SKILLS
    assert correlation(true, found) > 0.98
    assert np.abs(true - found).max() < 0.4


def test_simulated_difficulties_come_back(known: World, router: IRT):
    x = np.array([q.embedding for q in known.outcomes.queries])
    found = difficult(x, router.mixture(x)) @ router.difficulty_
    assert correlation(known.difficulty, found) > 0.98


def test_the_skill_of_a_query_is_recognised(known: World, router: IRT):
    shares = router.mixture(np.array([q.embedding for q in known.outcomes.queries]))
    assert shares.sum(axis=1) == pytest.approx(1.0)
    assert (np.array(SKILLS)[shares.argmax(axis=1)] == known.outcomes.labels["skill"]).mean() > 0.99


def test_chances_come_back_on_new_queries(known: World, router: IRT):
    mean = router.predict(known.outcomes.queries[:500], known.outcomes.pool)["quality"].mean
    assert np.abs(mean - known.chance[:500]).mean() < 0.04


def test_a_third_of_the_outcomes_missing_changes_little():
    full, holes = world(1500), world(1500, missing=0.35)
    one, other = (IRT(l2=1.0, shrink=0.1).fit(w.outcomes) for w in (full, holes))
    assert correlation(one.ability_, other.ability_) > 0.97
    assert (other.ability_std_ > one.ability_std_).all()


def test_one_skill_and_no_text_is_the_logit_of_the_mean():
    y = np.array([[1, 1], [1, 0], [1, 0], [0, 0], [1, 1]], dtype=float)
    ones, none = np.ones((5, 1)), np.zeros((5, 1))
    ability, std, w, _ = abilities_and_difficulty(ones, none, y, np.ones((5, 2)), l2=1.0, shrink=3.0)
    p = sigmoid(ability[:, 0])
    assert 5 * (p - y.mean(axis=0)) + 1e-2 * ability[:, 0] == pytest.approx(0.0, abs=1e-8)  # the weak pull to zero
    assert std == pytest.approx(1 / np.sqrt(5 * p * (1 - p) + 1e-2))
    assert w == pytest.approx(0.0)


def test_the_solution_is_stationary():
    rng = np.random.default_rng(0)
    mixture, x = rng.dirichlet(np.ones(3), size=40), rng.normal(size=(40, 4))
    y, count = rng.random((40, 5)), rng.integers(0, 3, size=(40, 5)).astype(float)
    l2, shrink = 0.7, 2.0
    ability, _, w, _ = abilities_and_difficulty(mixture, x, y, count, l2, shrink, steps=50)
    residual = count * (sigmoid(mixture @ ability.T - (x @ w)[:, None]) - y)
    own = shrink * (ability - ability.mean(axis=1, keepdims=True)) + 1e-2 * ability
    assert residual.T @ mixture + own == pytest.approx(0.0, abs=1e-6)
    assert -x.T @ residual.sum(axis=1) + l2 * w == pytest.approx(0.0, abs=1e-6)


def test_a_weight_of_two_counts_a_query_twice(known: World):
    some = known.outcomes.take(np.arange(60))
    twice = some.take(np.r_[np.arange(60), np.arange(20)])
    heavy = IRT(skill_l2=0.1).fit(some, np.r_[np.full(20, 2.0), np.ones(40)])
    plain = IRT(skill_l2=0.1).fit(twice)
    mine, other = (r.predict(some.queries, some.pool)["quality"] for r in (heavy, plain))
    assert mine.mean == pytest.approx(other.mean, abs=1e-3)  # as near as the optimiser of the skills stops


def test_softmax_regression_is_stationary():
    rng = np.random.default_rng(1)
    x, target, count = rng.normal(size=(50, 4)), rng.integers(3, size=50), rng.random(50) + 0.5
    weight, bias = softmax_regression(x, target, 3, 0.05, count)
    z = x @ weight + bias
    residual = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(3)[target]
    residual *= (count / count.sum())[:, None]
    assert x.T @ residual + 0.05 * weight == pytest.approx(0.0, abs=1e-4)
    assert residual.sum(axis=0) == pytest.approx(0.0, abs=1e-4)


def drawn(router: IRT, ability: Array, num: int, seed: int) -> tuple[list[Query], Array]:
    """Queries of the same world, answered by a candidate with these abilities in the router's own eyes."""
    queries = list(world(num, seed=seed + 100).outcomes.queries)
    candidate = Candidate("new", profile=Profile(ability=dict(zip(SKILLS, ability, strict=True))))
    chance = router.predict(queries, [candidate])["quality"].mean[:, 0]
    return queries, (np.random.default_rng(seed).random(num) < chance).astype(float)


@pytest.mark.parametrize("ability", [(-1.0, 0.5, 1.0), (2.0, 1.5, 2.5), (-2.0, -1.0, -1.5)])
def test_measure_converges_to_the_truth(router: IRT, ability):
    found, std = router.measure(*drawn(router, np.array(ability), 6000, seed=1))
    assert [found[skill] for skill in SKILLS] == pytest.approx(ability, abs=0.2)
    assert std < 0.1


def test_measure_shrinks_to_what_is_known_of_others_with_few_answers(router: IRT):
    ability = np.array([3.0, 3.0, 3.0])
    prior = router.prior_mean_
    far, doubt = [], []
    for num in (1, 10, 60, 1000):
        level = []
        for seed in range(8):
            found, std = router.measure(*drawn(router, ability, num, seed))
            level.append(np.mean(list(found.values())))
        far.append(np.mean(level))
        doubt.append(std)
    assert prior.mean() < far[0] < far[1] < far[2] < far[3]
    assert far[0] - prior.mean() < 0.5
    assert far[3] == pytest.approx(3.0, abs=0.3)
    assert doubt == sorted(doubt, reverse=True)
    assert doubt[0] == pytest.approx(np.sqrt((router.prior_std_**2 + 2 * SKILL_SPREAD**2) / 3), rel=0.1)


def test_measure_solves_the_posterior(router: IRT):
    queries, scores = drawn(router, np.array([0.0, 1.0, 2.0]), 40, seed=3)
    found, _ = router.measure(queries, scores)
    x = np.array([q.embedding for q in queries])
    mixture = router.mixture(x)
    ability, s = np.array([found[skill] for skill in SKILLS]), len(SKILLS)
    p = sigmoid(mixture @ ability - difficult(x, mixture) @ router.difficulty_)
    level = np.full((s, s), 1 / s)
    precision = level / router.prior_std_**2 + (np.eye(s) - level) / SKILL_SPREAD**2
    assert mixture.T @ (p - scores) + precision @ (ability - router.prior_mean_) == pytest.approx(0.0, abs=0.02)


def test_all_right_and_all_wrong_stay_finite_and_apart(router: IRT):
    queries = list(world(30, seed=9).outcomes.queries)
    best, _ = router.measure(queries, np.ones(30))
    worst, _ = router.measure(queries, np.zeros(30))
    assert all(-10 < worst[skill] < router.prior_mean_[i] < best[skill] < 10 for i, skill in enumerate(SKILLS))


@pytest.mark.parametrize("scores", [np.zeros(0), np.zeros(2), np.array([1.0, np.nan, 0.0])])
def test_measure_wants_a_score_for_each_query(router: IRT, scores):
    with pytest.raises(OutcomesError, match="expected a finite score for each of"):
        router.measure(queries_of(np.zeros((3, 12), np.float32)) if len(scores) else [], scores)


def test_a_stranger_gets_the_spread_of_the_others_and_much_doubt(known: World, router: IRT):
    queries = known.outcomes.queries[:50]
    stranger, friend = Candidate("stranger"), known.outcomes.pool[3]
    ability, std = router.abilities([stranger, friend])
    assert ability[0] == pytest.approx(router.ability_.mean(axis=0))
    assert std == pytest.approx([router.prior_std_, router.ability_std_[3]])
    estimate = router.predict(queries, [stranger, friend])["quality"]
    slope = estimate.mean * (1 - estimate.mean)
    assert estimate.std == pytest.approx(slope * np.sqrt(std**2 + router.difficulty_std_**2), rel=1e-4)


def test_a_profile_wins_over_what_was_fitted(router: IRT):
    given = dict(zip(SKILLS, (0.1, 0.2, 0.3), strict=True))
    told = Candidate("m0", profile=Profile(ability=given, ability_std=0.07))
    ability, std = router.abilities([told, Candidate("m0"), Candidate("x", profile=Profile(ability=given))])
    assert ability[0] == pytest.approx([0.1, 0.2, 0.3])
    assert ability[1] == pytest.approx(router.ability_[0])
    assert std == pytest.approx([0.07, router.ability_std_[0], 0.3])


def test_a_profile_may_name_a_few_skills_or_a_level(router: IRT):
    shape = router.prior_mean_ - router.prior_mean_.mean()
    assert router.from_profile({"general": 1.5}) == pytest.approx(1.5 + shape)
    one = router.from_profile({"logic": 2.0})
    assert one[1] == 2.0
    assert one == pytest.approx(2.0 - shape[1] + shape)  # the others as far from logic as they are elsewhere
    both = router.from_profile({"general": -1.0, "math": 4.0})
    assert both == pytest.approx([-1.0 + shape[0], -1.0 + shape[1], 4.0])
    assert router.from_profile({"painting": 3.0}) == pytest.approx(router.prior_mean_)  # says nothing of these skills


def test_explain_is_what_predict_uses(known: World, router: IRT):
    query, candidate = known.outcomes.queries[7], known.outcomes.pool[2]
    seen = router.explain(query)
    shares = np.array([seen["skills"][skill] for skill in SKILLS])
    logit = shares @ router.ability_[2] - seen["difficulty"]
    assert shares.sum() == pytest.approx(1.0, abs=0.002)
    assert router.predict([query], [candidate])["quality"].mean[0, 0] == pytest.approx(sigmoid(logit), abs=0.003)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1])
def test_a_query_alone_is_estimated_as_in_a_batch(known: World, router: IRT, size: int, scale: float):
    pool = [Candidate(f"new-{j}", profile=Profile(ability={"general": j - 3.0})) for j in range(size)]
    queries = [Query(q.id, embedding=scale * np.asarray(q.embedding)) for q in known.outcomes.queries[:20]]
    batch = router.predict(queries, pool)["quality"]
    for i, query in enumerate(queries):
        alone = router.predict([query], pool)["quality"]
        np.testing.assert_allclose(alone.mean, batch.mean[i : i + 1], rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(alone.std, batch.std[i : i + 1], rtol=0, atol=1e-6 * scale)


def test_it_is_the_same_after_a_round_through_a_file(known: World, router: IRT, tmp_path):
    save(router, tmp_path / "irt.npz", features="static-1", pool=known.outcomes.pool)
    other = load(tmp_path / "irt.npz").router
    pool = [*known.outcomes.pool, Candidate("stranger"), Candidate("p", profile=Profile(ability={"general": 1.0}))]
    queries = known.outcomes.queries[:40]
    for a, b in zip(router.predict(queries, pool)["quality"], other.predict(queries, pool)["quality"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert other.measure(queries, np.ones(40)) == router.measure(queries, np.ones(40))
    one, two = router.explain(queries[0]), other.explain(queries[0])
    assert (two["skills"], two["difficulty"]) == (one["skills"], pytest.approx(one["difficulty"], rel=1e-6))


def test_fitting_again_forgets_the_first_time(known: World):
    small = known.outcomes.take(np.arange(200))
    others = [Candidate(f"z{j}") for j in range(6)]
    renamed = Outcomes(small.queries, others, small.values, small.observed, small.labels)
    again = IRT().fit(small)
    again.predict(small.queries, small.pool)
    again.fit(renamed)
    fresh = IRT().fit(renamed)
    one, other = (r.predict(small.queries, small.pool)["quality"].mean for r in (again, fresh))
    np.testing.assert_array_equal(one, other)
    assert np.ptp(one, axis=1).max() == pytest.approx(0.0)  # the old names are strangers now


def test_what_it_cannot_do_without():
    table = world(20).outcomes
    with pytest.raises(NotFittedError):
        IRT().predict(table.queries, table.pool)
    bare = Outcomes(table.queries, table.pool, table.values, table.observed)
    with pytest.raises(OutcomesError, match="skill or dataset"):
        IRT().fit(bare)


@pytest.mark.parametrize("n", [300, 1000, 4000])
def test_the_doubt_is_as_large_as_the_error(n: int):
    whole = world(n + 500)
    router = IRT(l2=1.0, shrink=0.1).fit(whole.outcomes.take(np.arange(n)))
    mean, std = router.predict(whole.outcomes.queries[n:], whole.outcomes.pool)["quality"]
    chance = whole.chance[n:]
    error = np.log(mean / (1 - mean)) - np.log(chance / (1 - chance))
    claimed = std / (mean * (1 - mean))
    assert 0.5 < np.sqrt((error**2).mean()) / np.sqrt((claimed**2).mean()) < 2.0


def test_skills_move_difficulty_almost_freely():
    x, mixture = np.ones((2, 3)), np.eye(2)
    assert difficult(x, mixture).tolist() == [[1, 1, 1, SKILL_SCALE, 0], [1, 1, 1, 0, SKILL_SCALE]]
