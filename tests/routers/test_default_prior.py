"""The default router beside a prior that reads abilities, and on tables whose candidates saw different tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyroute.artefact import load, save
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.routers.default import Default
from polyroute.routers.irt import IRT
from polyroute.routers.tasks import learn_prior
from polyroute.types import Candidate, Outcomes, Profile

ABLE = Candidate("able", profile=Profile(ability={"general": 2.0}))


@pytest.fixture(scope="module")
def table() -> Outcomes:
    return synthetic_outcomes(300, 4, rng=np.random.default_rng(3)).outcomes


@pytest.fixture(scope="module")
def router(table: Outcomes) -> Default:
    return Default(prior=IRT().fit(table)).fit(table)


def test_the_prior_estimates_those_whose_profile_states_abilities(table: Outcomes, router: Default) -> None:
    plain = Default().fit(table)
    queries, known = table.queries[:20], list(table.pool)
    pool = [known[0], ABLE, *known[1:], Candidate("stranger")]
    found = router.predict(queries, pool)
    others = [0, 2, 3, 4, 5]
    for metric, estimate in plain.predict(queries, [pool[j] for j in others]).items():
        np.testing.assert_array_equal(found[metric].mean[:, others], estimate.mean)
    wanted = router.prior.predict(queries, [ABLE])["quality"]
    np.testing.assert_array_equal(found["quality"].mean[:, 1:2], wanted.mean.astype(np.float32))
    np.testing.assert_allclose(found["quality"].std[:, 1:2], wanted.std, rtol=1e-6)
    assert (found["quality"].mean[:, 1] != plain.predict(queries, pool)["quality"].mean[:, 1]).any()


def test_a_pool_of_stated_abilities_is_the_priors_alone(table: Outcomes, router: Default) -> None:
    pool = [ABLE, Candidate("weak", profile=Profile(ability={"general": -1.0}))]
    mean = router.predict(table.queries[:9], pool)["quality"].mean
    np.testing.assert_allclose(mean, router.prior.predict(table.queries[:9], pool)["quality"].mean, rtol=1e-6)
    assert (mean[:, 0] > mean[:, 1]).all()


def test_a_saved_router_keeps_its_prior_and_the_names_of_tasks(
    table: Outcomes, router: Default, tmp_path: Path
) -> None:
    save(router, tmp_path / "r.npz", features="toy", pool=table.pool)
    again = load(tmp_path / "r.npz").router
    pool = [*table.pool, ABLE]
    for metric, estimate in router.predict(table.queries[:9], pool).items():
        np.testing.assert_allclose(again.predict(table.queries[:9], pool)[metric].mean, estimate.mean, rtol=1e-6)
    seen = again.explain(table.queries[0])
    assert seen == router.explain(table.queries[0])
    assert set(seen["tasks"]) == set(np.unique(table.labels["dataset"]))
    assert sum(seen["tasks"].values()) == pytest.approx(1, abs=0.01)
    assert list(seen["tasks"].values()) == sorted(seen["tasks"].values(), reverse=True)
    assert "difficulty" in seen, "what the prior sees"
    assert "difficulty" not in Default().fit(table).explain(table.queries[0])


def test_candidates_that_were_asked_different_tasks_are_compared_fairly() -> None:
    # Task 0: both strong ones; task 1: everybody; task 2: both weak ones. All tasks are equally hard.
    score = np.array([0.9, 0.8, 0.5, 0.4])
    count = np.array([[500.0, 500, 0, 0], [100, 100, 100, 100], [0, 0, 500, 500]])
    sums = np.stack([count * score, count * score, count])
    pool = [Candidate(f"m{j}") for j in range(4)]
    prior = learn_prior(sums, np.arange(3), pool)
    np.testing.assert_allclose(prior.mean, score.mean(), atol=0.06)


def test_in_a_full_table_a_tasks_mean_is_that_of_its_scores() -> None:
    rng = np.random.default_rng(5)
    score, count = rng.random((6, 5)), np.full((6, 5), 200.0)
    prior = learn_prior(
        np.stack([count * score, count * score, count]), np.arange(6), [Candidate(f"m{j}") for j in range(5)]
    )
    np.testing.assert_allclose(prior.mean, (1000 * score.mean(axis=1) + 20 * score.mean()) / 1020, atol=1e-6)
