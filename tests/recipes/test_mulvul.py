"""MulVul: fields first, then who in them; and prompts that another model judges."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, EstimateError, UnknownCandidateError
from polyroute.offline.evolve import evolve_prompt
from polyroute.offline.sets import recall_at_k
from polyroute.recipes.mulvul import coarse_to_fine, with_evidence
from polyroute.routers.coarse import CoarseToFine
from polyroute.types import Candidate, Outcomes, Query

FIELDS = {"a0": "a", "a1": "a", "b0": "b", "b1": "b", "c0": "c", "c1": "c"}
NAMES = list(FIELDS)


def world(n, rng):
    """Queries near their field's direction and, less so, near their label's."""
    label = rng.integers(6, size=n)
    x = np.zeros((n, 9))
    x[np.arange(n), label // 2] = 1.0
    x[np.arange(n), 3 + label] = 0.6
    x = (x + 0.25 * rng.normal(size=x.shape)).astype(np.float32)
    right = np.eye(6)[label]
    pool = [Candidate(name, "label") for name in NAMES]
    queries = [Query(f"q{i}", embedding=row) for i, row in enumerate(x)]
    return Outcomes(queries, pool, {"quality": right}, np.ones(right.shape, bool)), label


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    return world(400, rng), world(300, rng)


@pytest.mark.parametrize("merge", ["product", "max_conf"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_only_opened_fields_count_and_bound_the_rest(tables, merge, k):
    (train, _), (test, label) = tables
    router = coarse_to_fine(FIELDS, k, merge).fit(train)
    mean = router.predict(test.queries, test.pool)["quality"].mean
    opened = router.opened(test.queries)
    field = np.array([router.names.index(FIELDS[name]) for name in NAMES])
    assert (opened.sum(axis=1) == k).all()
    assert (mean[~opened[:, field]] == 0).all()
    bound = recall_at_k(field[label], opened.astype(float), k)
    accuracy = (mean.argmax(axis=1) == label).mean()
    assert accuracy <= bound
    assert accuracy > 0.6


def test_all_fields_open_with_plain_confidence_is_the_specialists_alone(tables):
    (train, _), (test, _) = tables
    router = coarse_to_fine(FIELDS, 3, "max_conf").fit(train)
    rows = train.values["quality"][:, :2].any(axis=1)
    alone = with_evidence().fit(train.take(rows).among(NAMES[:2])).predict(test.queries, test.pool[:2])["quality"]
    assert router.predict(test.queries, test.pool)["quality"].mean[:, :2] == pytest.approx(alone.mean)


def test_a_candidate_without_a_field_is_named(tables):
    (train, _), _ = tables
    router = coarse_to_fine(FIELDS).fit(train)
    with pytest.raises(UnknownCandidateError, match="'z9'"):
        router.predict(train.queries, [Candidate("z9")])
    with pytest.raises(ConfigError, match="k"):
        CoarseToFine(FIELDS, 0)
    with pytest.raises(ConfigError, match="merge"):
        CoarseToFine(FIELDS, merge="vote")


def breed(score, generations=15, seed=0):
    rng = np.random.default_rng(seed)

    def mutate(prompt, failures):
        flip = rng.integers(len(prompt))
        return tuple(1 - on if k == flip else on for k, on in enumerate(prompt))

    return evolve_prompt((0,) * 6, mutate, score, 100, generations=generations, rng=rng)


def test_evolution_reaches_a_known_best_prompt():
    found = breed(lambda prompt, items: np.full(len(items), np.mean(prompt)))
    assert found.prompt == (1,) * 6
    assert found.score == 1.0
    assert found.history == sorted(found.history)
    assert found.judged <= 16 * 8 * 32
    assert breed(lambda prompt, items: np.ones(len(items)), generations=0).prompt == (0,) * 6


def test_what_the_generator_is_told_are_the_items_it_failed_on():
    told = []
    evolve_prompt("p", lambda prompt, failures: told.append(set(failures)) or prompt,
                  lambda prompt, items: (items % 2 == 0).astype(float), 10, generations=1, population=3, elite=1,
                  rng=np.random.default_rng(0))  # fmt: skip
    assert told == [{1, 3, 5, 7, 9}] * 2


def test_bad_scores_and_settings_are_named():
    with pytest.raises(EstimateError, match="score of a prompt"):
        breed(lambda prompt, items: np.full(len(items), np.nan))
    with pytest.raises(ConfigError, match="elite"):
        evolve_prompt("p", lambda p, f: p, lambda p, i: i, 5, elite=9, population=3, rng=np.random.default_rng(0))
