from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.routers import knn
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.types import Candidate
from tests.routers.tables import queries_of, renamed, table_of, toy


def slow(train, test, k, kappa):
    """The definition, one cell at a time."""
    unit = [np.asarray(q.embedding, float) / np.linalg.norm(q.embedding) for q in train.queries]
    y = np.where(train.observed, train.values["quality"], np.nan)
    some = np.flatnonzero(np.isfinite(y).any(axis=1))
    mean = np.empty((len(test), y.shape[1]))
    for i, query in enumerate(test.queries):
        alike = {r: unit[r] @ (query.embedding / np.linalg.norm(query.embedding)) for r in some}
        near = sorted(some, key=lambda r: -alike[r])[:k]
        for j in range(y.shape[1]):
            seen = [y[r, j] for r in near if np.isfinite(y[r, j])]
            mean[i, j] = (sum(seen) + kappa * np.nanmean(y[:, j])) / (len(seen) + kappa)
    return mean


@pytest.mark.parametrize(("k", "kappa"), [(1, 1.0), (5, 0.5), (50, 50.0), (1000, 3.0)])
def test_it_is_the_definition(k, kappa):
    train, test = toy(90, missing=0.4), toy(20, seed=1)
    mean = KNN(k, kappa).fit(train).predict(test.queries, test.pool)["quality"].mean
    np.testing.assert_allclose(mean, slow(train, test, k, kappa), rtol=1e-12)


def test_a_batch_in_chunks_equals_the_whole(monkeypatch):
    train, test = toy(90), toy(20, seed=1)
    router = KNN(5).fit(train)
    whole = router.predict(test.queries, test.pool)["quality"]
    monkeypatch.setattr(knn, "CHUNK", 90 * 3)
    parts = router.predict(test.queries, test.pool)["quality"]
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.std, whole.std)


def test_updates_one_row_at_a_time_equal_one_fit():
    train, test = toy(90), toy(20, seed=1)
    router = KNN(5).fit(train.take(np.arange(3)))
    for i in range(3, 90):
        router.update(train.take(np.array([i])))
    expected = KNN(5).fit(train).predict(test.queries, test.pool)["quality"]
    found = router.predict(test.queries, test.pool)["quality"]
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)


def test_rows_without_an_outcome_take_no_neighbour_s_place():
    x = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    router = KNN(1, kappa=0.0).fit(table_of(x, np.array([[np.nan], [1.0], [0.0]])))
    assert router.predict(queries_of(np.array([[1.0, 0.0]])), [Candidate("m0")])["quality"].mean[0, 0] == 1.0


def test_a_prior_takes_the_place_of_the_overall_mean():
    train, test = toy(90), toy(20, seed=1)
    plain = KNN(10, kappa=0.0).fit(train).predict(test.queries, test.pool)["quality"].mean
    seen = KNN(10, kappa=0.0).fit(train)._neighbours(np.stack([q.embedding for q in test.queries]))[:, 2]
    mixed = KNN(10, kappa=6.0, prior=Constant("quality", 0.9, 0.1)).fit(train)
    mean = mixed.predict(test.queries, test.pool)["quality"].mean
    np.testing.assert_allclose(mean, (seen * plain + 6 * 0.9) / (seen + 6), rtol=1e-6)


def test_a_stranger_gets_the_prior_s_mean_and_doubt():
    router = KNN(10, kappa=6.0, prior=Constant("quality", 0.9, 0.123)).fit(toy())
    mean, std = router.predict(toy(3, seed=1).queries, [Candidate("stranger")])["quality"]
    np.testing.assert_allclose(mean, 0.9)
    np.testing.assert_allclose(std, 0.123)


def test_with_a_prior_it_starts_from_no_outcomes_at_all():
    train, test = toy(), toy(3, seed=1)
    router = KNN(prior=Constant("quality", 0.7, 0.2)).fit(train.take(np.zeros(0, int)))
    np.testing.assert_allclose(router.predict(test.queries, test.pool)["quality"].mean, 0.7)
    router.update(renamed(train, ["a", "b", "c", "d"]))
    assert (router.predict(test.queries, [Candidate("a")])["quality"].mean != 0.7).all()


def test_the_doubt_is_the_error_made_on_average():
    """Two kinds of query whose chances are known: the std must foretell the error of the mean, not of the outcomes."""
    rng, errors, stds = np.random.default_rng(0), [], []
    chance = np.array([[0.7, 0.2], [0.4, 0.5]])
    for _ in range(60):
        kind = rng.integers(2, size=400)
        x = np.eye(8)[kind] + 0.02 * rng.normal(size=(400, 8))
        table = table_of(x, (rng.random((400, 2)) < chance[kind]).astype(float))
        test = queries_of(np.eye(8)[:2])
        mean, std = KNN(25, kappa=5.0).fit(table).predict(test, table.pool)["quality"]
        errors.append(mean - chance)
        stds.append(std)
    ratio = np.sqrt(np.mean(np.square(errors))) / np.sqrt(np.mean(np.square(stds)))
    assert 0.7 < ratio < 1.1


@pytest.mark.parametrize(("option", "value"), [("k", 0), ("kappa", -1.0), ("kappa", float("nan"))])
def test_options_out_of_range_name_themselves(option, value):
    with pytest.raises(ConfigError, match=option):
        KNN(**{option: value})
