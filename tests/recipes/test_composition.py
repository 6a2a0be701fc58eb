"""Composition of Experts: the integer programme against scipy's, budgets, and the generalist."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.offline.subset import best_subset
from polyroute.recipes.composition import CompositionOfExperts
from polyroute.types import Array, Outcomes


def by_milp(scores: Array, weights: Array, sizes: Array, budget: float) -> float:
    """The published programme as it is written: x[c, m] who serves, y[m] who is kept."""
    c, m = scores.shape
    gain = np.r_[(weights[:, None] * scores).ravel(), np.zeros(m)]
    serve = np.hstack([np.kron(np.eye(c), np.ones(m)), np.zeros((c, m))])
    only_kept = np.hstack([np.eye(c * m), -np.tile(np.eye(m), (c, 1))])
    room = np.r_[np.zeros(c * m), sizes]
    rules = [LinearConstraint(serve, 1, 1), LinearConstraint(only_kept, -np.inf, 0), LinearConstraint(room, 0, budget)]
    found = milp(-gain, constraints=rules, integrality=np.ones(len(gain)), bounds=Bounds(0, 1))
    assert found.success
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_the_exact_set_is_the_integer_programmes(seed):
    rng = np.random.default_rng(seed)
    c, m = int(rng.integers(1, 5)), int(rng.integers(2, 8))
    scores, weights, sizes = rng.random((c, m)), rng.dirichlet(np.ones(c)), rng.integers(1, 9, size=m).astype(float)
    for budget in (sizes.min(), sizes.mean() * 2, sizes.sum()):
        exact, greedy = (best_subset(scores, weights, sizes, budget, exact=how) for how in (True, False))
        assert exact.value == pytest.approx(by_milp(scores, weights, sizes, budget))
        assert exact.value == pytest.approx(weights @ scores[np.arange(c), exact.mapping])
        assert greedy.value <= exact.value + 1e-12
        for found in (exact, greedy):
            assert sizes[list(found.kept)].sum() <= budget
            assert set(found.mapping) <= set(found.kept)


def test_greedy_swaps_out_of_a_dead_end():
    scores = np.array([[0.9, 0.85, 0.0], [0.0, 0.0, 0.85]])  # the best single leaves no room for a second
    found = best_subset(scores, np.full(2, 0.5), np.array([4.0, 2.0, 2.0]), 4.0)
    assert found.kept == (1, 2)
    assert found.value == pytest.approx(0.85)


def test_among_equals_the_smaller_set_is_kept():
    assert best_subset(np.array([[0.5, 0.5]]), np.ones(1), np.array([3.0, 2.0]), 9.0).kept == (1,)


def test_a_budget_too_small_and_wrong_shapes_are_errors():
    with pytest.raises(ConfigError, match=r"budget: expected room for at least one candidate, 2"):
        best_subset(np.ones((1, 2)), np.ones(1), np.array([2.0, 3.0]), 1.0)
    with pytest.raises(ShapeError):
        best_subset(np.ones((1, 2)), np.ones(2), np.ones(2), 1.0)


@pytest.fixture(scope="module")
def world() -> tuple[Outcomes, Outcomes]:
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    return found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")


SIZES = {f"model-{j}": float(j + 1) for j in range(4)}


def composed(train: Outcomes, budget: float, **settings: float) -> CompositionOfExperts:
    return CompositionOfExperts(SIZES, budget, **settings).fit(train, train.labels["dataset"])


def test_it_beats_the_best_single_that_fits(world):
    train, test = world
    quality, rows = test.values["quality"], np.arange(len(test))
    gains = []
    for budget in (3.0, 5.0, 10.0):
        fits = [j for j in range(4) if j + 1 <= budget]
        single = max(fits, key=lambda j: train.values["quality"][:, j].mean())
        gains.append(quality[rows, composed(train, budget).choose(test.queries)].mean() - quality[:, single].mean())
    assert np.mean(gains) > 0.02


def test_more_room_is_never_worse_and_only_the_kept_serve(world):
    train, test = world
    values = []
    for budget in range(1, 11):
        expert = composed(train, float(budget))
        values.append(expert.chosen_.value)
        assert sum(SIZES[f"model-{j}"] for j in expert.chosen_.kept) <= budget
        assert set(expert.choose(test.queries)) <= set(expert.chosen_.kept)
    assert values == sorted(values)


def test_scores_are_shrunk_to_each_models_mean(world):
    train, _ = world
    quality, label = train.values["quality"], train.labels["dataset"]
    for kappa in (0.0, 30.0):
        found = composed(train, 10.0, kappa=kappa)
        for i, name in enumerate(found.names_):
            rows = quality[label == name]
            expected = (rows.sum(axis=0) + kappa * quality.mean(axis=0)) / (len(rows) + kappa)
            assert found.scores_[i] == pytest.approx(expected)
    assert np.ptp(composed(train, 10.0, kappa=1e9).scores_, axis=0) == pytest.approx(0, abs=1e-5)


def test_an_unsure_category_goes_to_the_generalist(world):
    train, test = world
    plain, careful = composed(train, 10.0), composed(train, 10.0, robust=1.01)
    assert set(careful.choose(test.queries)) == {careful.generalist_}
    assert len(set(plain.choose(test.queries))) > 1
    best = train.values["quality"].mean(axis=0)
    assert careful.generalist_ == max(careful.chosen_.kept, key=lambda j: best[j])
    some = composed(train, 10.0, robust=0.8).choose(test.queries)
    changed = some != plain.choose(test.queries)
    assert set(some[changed]) <= {careful.generalist_}


def test_noisier_categories_gain_less(world):
    train, test = world
    rng, quality, rows = np.random.default_rng(0), test.values["quality"], np.arange(len(test))
    found = []
    for noise in (0.0, 1.0):
        label = train.labels["dataset"].copy()
        swap = rng.random(len(label)) < noise
        label[swap] = rng.permutation(label[swap])
        expert = CompositionOfExperts(SIZES, 10.0).fit(train, label)
        found.append(quality[rows, expert.choose(test.queries)].mean())
    assert found[0] > found[1]


def test_what_it_cannot_do_without(world):
    train, test = world
    with pytest.raises(NotFittedError):
        CompositionOfExperts(SIZES, 10.0).choose(test.queries)
    gaps = train.values["quality"].copy()
    gaps[0, 0] = np.nan
    holes = Outcomes(train.queries, train.pool, {"quality": gaps}, np.isfinite(gaps), train.labels)
    with pytest.raises(OutcomesError, match="got gaps"):
        composed(holes, 10.0)
