"""Centroids: sums that add up, a strength that is 0 where edges say nothing, newcomers by their edges."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, OutcomesError
from polyroute.routers.centroids import Centroids, expected_head, learned_strength
from polyroute.types import Candidate, Outcomes
from tests.routers.tables import table_of, toy


def test_edges_that_say_nothing_have_no_strength_and_true_ones_do():
    rng = np.random.default_rng(0)
    phi, seen = rng.normal(size=(800, 4)), np.ones((800, 6), dtype=bool)
    true = rng.normal(size=(4, 6)) * 0.2
    args = (seen, 0.3, 10.0, 3)
    noise = learned_strength(phi, 0.4 * rng.normal(size=(800, 6)), *args, np.random.default_rng(1))
    signal = learned_strength(phi, phi @ true + 0.1 * rng.normal(size=(800, 6)), *args, np.random.default_rng(1))
    assert noise < 0.3
    assert 0.9 < signal < 1.3  # the queries have unit variance, so the centroid is the weight itself, shrunk a little


def test_what_is_expected_of_a_query_is_the_mean_over_candidates():
    rng = np.random.default_rng(2)
    phi = np.column_stack([np.ones(500), rng.normal(size=(500, 3))])
    y = np.repeat((phi @ np.array([0.5, 0.1, -0.1, 0.0]))[:, None], 3, axis=1)
    seen = rng.random((500, 3)) < 0.7
    np.testing.assert_allclose(expected_head(phi, y, seen), [0.5, 0.1, -0.1, 0.0], atol=0.01)


def test_update_in_two_parts_equals_one():
    train, more, test = toy(), toy(40, seed=5, prefix="r"), toy(9, seed=1)
    once, twice = Centroids().fit(train), Centroids().fit(train)
    once.update(more)
    twice.update(more.take(np.arange(15)))
    twice.update(more.take(np.arange(15, 40)))
    one, two = (r.predict(test.queries, test.pool)["quality"] for r in (once, twice))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-9)
    np.testing.assert_allclose(one.std, two.std, rtol=1e-9)


def test_a_newcomer_is_read_by_its_edges_and_shuffled_edges_mislead():
    found = synthetic_outcomes(1500, 5, rng=np.random.default_rng(4)).outcomes
    train, test = found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")
    j = 2
    base = Centroids().fit(train.among([c.id for k, c in enumerate(train.pool) if k != j]))
    edges = train.take(np.arange(150)).among([train.pool[j].id])
    mixed = np.random.default_rng(0).permutation(edges.values["quality"])
    error = {}
    for name, outcomes in (
        ("edges", edges),
        ("shuffled", Outcomes(edges.queries, edges.pool, {"quality": mixed}, edges.observed)),
    ):
        params, arrays = base.state()
        router = Centroids.from_state(params, arrays)
        router.update(outcomes)
        told = router.predict(test.queries, [test.pool[j]])["quality"].mean[:, 0]
        error[name] = float(((told - test.values["quality"][:, j]) ** 2).mean())
    assert error["edges"] < error["shuffled"] - 0.01


def test_the_doubt_shrinks_with_edges():
    train, test = toy(200), toy(9, seed=1)
    router = Centroids().fit(train)
    few = toy(5, seed=3, prefix="r")
    few.pool[0] = Candidate("new")
    router.update(few.among(["new"]))
    std = router.predict(test.queries, [Candidate("new"), test.pool[0]])["quality"].std
    assert (std[:, 0] > std[:, 1]).all()


@pytest.mark.parametrize(("name", "settings"), [("rank", {"rank": 0}), ("kappa", {"kappa": 0}),
                                                ("visible", {"visible": 1.0}), ("masks", {"masks": 0})])  # fmt: skip
def test_bad_settings_are_told(name, settings):
    with pytest.raises(ConfigError, match=name):
        Centroids(**settings)


def test_an_empty_table_is_told():
    with pytest.raises(OutcomesError, match="at least one outcome"):
        Centroids().fit(table_of(np.eye(3), np.full((3, 2), np.nan)))
