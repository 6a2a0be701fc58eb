from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError
from polyroute.routers.cluster import Cluster, kmeans, seeds
from polyroute.routers.constant import Constant
from polyroute.routers.rows import unit_rows
from tests.routers.tables import queries_of, table_of, toy


def blobs(n=300, c=4, seed=0):
    """Rows around c orthogonal directions, and which."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(c, size=n)
    return unit_rows((np.eye(8)[kind] + 0.05 * rng.normal(size=(n, 8))).astype(np.float32)), kind


def test_separate_blobs_become_clusters():
    x, kind = blobs()
    cluster = (x @ kmeans(x, 4, np.random.default_rng(0)).T).argmax(axis=1)
    assert len(set(zip(kind, cluster, strict=True))) == 4


def test_centres_are_the_mean_directions_of_their_rows():
    x = unit_rows(np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32))
    centres = kmeans(x, 6, np.random.default_rng(1))
    nearest = (x @ centres.T).argmax(axis=1)
    for c in range(6):
        np.testing.assert_allclose(centres[c], unit_rows(x[nearest == c].sum(axis=0)[None])[0], atol=1e-5)


def test_there_are_no_more_clusters_than_distinct_rows():
    x = unit_rows(np.repeat(np.eye(3, dtype=np.float32), 5, axis=0))
    assert len(kmeans(x, 10, np.random.default_rng(0))) == 3
    assert len(kmeans(x[:1], 10, np.random.default_rng(0))) == 1


def test_seeds_are_far_apart():
    x, kind = blobs(c=8)
    chosen = seeds(x, 8, np.random.default_rng(0))
    found = {int(np.argmax(row)) for row in chosen}
    assert len(found) >= 7
    assert len({int(k) for k in kind}) == 8


def test_the_estimate_is_the_cluster_s_mean_drawn_to_the_overall_mean():
    x, kind = blobs()
    y = (
        np.random.default_rng(1).random((300, 2)) < np.array([[0.9, 0.2], [0.1, 0.5], [0.5, 0.5], [0.3, 0.8]])[kind]
    ) * 1.0
    y[::7, 1] = np.nan
    mean, std = (
        Cluster(4, kappa=6.0).fit(table_of(x, y)).predict(queries_of(np.eye(8)[:4]), table_of(x, y).pool)["quality"]
    )
    for k in range(4):
        for j in range(2):
            inside = y[kind == k, j]
            inside = inside[np.isfinite(inside)]
            expected = (inside.sum() + 6 * np.nanmean(y[:, j])) / (len(inside) + 6)
            assert mean[k, j] == pytest.approx(expected)
            assert std[k, j] == pytest.approx(inside.std() / np.sqrt(len(inside)), rel=0.35)


def test_updates_add_to_the_table():
    x, _ = blobs()
    y = (np.random.default_rng(1).random((300, 2)) < 0.5).astype(float)
    table, test = table_of(x, y), queries_of(np.eye(8)[:4])
    whole = Cluster(4).fit(table)
    router = Cluster(4).fit(table.take(np.arange(100)))
    router.centres_ = whole.centres_
    router.table_, router.column_ = np.zeros((4, 3, 0)), {}
    for start in range(0, 300, 60):
        router.update(table.take(np.arange(start, start + 60)))
    np.testing.assert_allclose(
        router.predict(test, table.pool)["quality"].mean, whole.predict(test, table.pool)["quality"].mean
    )


def test_the_seed_decides():
    x, _ = blobs(c=8)
    table = table_of(x, np.ones((300, 1)))
    assert (Cluster(5, seed=1).fit(table).centres_ == Cluster(5, seed=1).fit(table).centres_).all()
    assert (Cluster(5, seed=1).fit(table).centres_ != Cluster(5, seed=2).fit(table).centres_).any()


def test_a_prior_takes_the_place_of_the_overall_mean():
    x, kind = blobs()
    y = kind[:, None] * 0.25
    router = Cluster(4, kappa=10.0, prior=Constant("quality", 0.5, 0.1)).fit(table_of(x, y))
    mean = router.predict(queries_of(np.eye(8)[:4]), table_of(x, y).pool)["quality"].mean
    size = np.bincount(kind)[:, None]
    np.testing.assert_allclose(mean, (size * y[[np.argmax(kind == k) for k in range(4)]] + 5) / (size + 10))


def test_a_table_without_outcomes_cannot_be_clustered():
    with pytest.raises(OutcomesError, match="at least one outcome"):
        Cluster().fit(toy().take(np.zeros(0, int)))


@pytest.mark.parametrize(("option", "value"), [("num_clusters", 0), ("kappa", -1.0)])
def test_options_out_of_range_name_themselves(option, value):
    with pytest.raises(ConfigError, match=option):
        Cluster(**{option: value})
