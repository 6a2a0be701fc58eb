"""The in-context head: leave-one-out exact, the prior where nothing is known, better with answers."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, OutcomesError
from polyroute.offline.ranking import auc
from polyroute.routers.incontext import InContext, known_heads, likeness, similarities
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Candidate
from tests.routers.tables import table_of, toy


def test_leaving_one_out_equals_fitting_without_it():
    rng = np.random.default_rng(0)
    phi = np.column_stack([np.ones(30), rng.normal(size=(30, 4))])
    y, seen = rng.random((30, 2)), rng.random((30, 2)) < 0.8
    _, told = known_heads(phi, y, seen, 0.7)
    for j in range(2):
        for i in np.flatnonzero(seen[:, j])[:5]:
            without = seen.copy()
            without[i, j] = False
            weight, _ = known_heads(phi, y, without, 0.7)
            assert told[i, j] == pytest.approx(phi[i] @ weight[:, j])


def test_features_rebuild_the_likeness_of_their_landmarks():
    rng = np.random.default_rng(1)
    x = unit_rows(rng.normal(size=(12, 5))).astype(np.float32)
    found = similarities(x, 12, 12, rng)
    phi = found(x)[:, 1:] - found.offset[1:]
    np.testing.assert_allclose(phi @ phi.T, likeness(x, x), atol=1e-4)
    assert found(x)[:, 0].tolist() == [1.0] * 12
    np.testing.assert_allclose(found(x)[:, 1:].mean(axis=0), 0.0, atol=1e-5)


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(1200, 5, rng=np.random.default_rng(3)).outcomes
    split = found.labels["split"]
    return found.take(split == "train"), found.take(split == "test")


def test_without_answers_it_is_the_mean_of_the_others_and_answers_help(world):
    train, test = world
    newcomer, others = train.pool[2], [c.id for k, c in enumerate(train.pool) if k != 2]
    router = InContext().fit(train.among(others))
    alone = router.predict(test.queries, [newcomer])["quality"]
    heads = router.features_(unit_rows(embeddings(test.queries))) @ router.known_
    np.testing.assert_allclose(alone.mean[:, 0], np.clip(heads.mean(axis=1), 0, 1), atol=1e-9)
    router.update(train.take(np.arange(200)).among([newcomer.id]))
    told = router.predict(test.queries, [newcomer])["quality"]
    y = test.values["quality"][:, 2]
    assert np.mean((told.mean[:, 0] - y) ** 2) < np.mean((alone.mean[:, 0] - y) ** 2) - 0.005
    assert auc(told.mean[:, 0], y) > auc(alone.mean[:, 0], y) + 0.02
    assert (told.std < alone.std).all()


def test_its_own_answers_never_shape_its_prior():
    train, test = toy(), toy(9, seed=1)
    router = InContext().fit(train)
    assert router._others(1)[1] == 0.0
    assert router._others(1).sum() == pytest.approx(1.0)
    assert router._others(99).sum() == pytest.approx(1.0)
    stranger = router.predict(test.queries, [Candidate("stranger")])["quality"]
    assert (stranger.std > router.predict(test.queries, test.pool)["quality"].std.mean(axis=1, keepdims=True)).all()


def test_update_in_two_parts_equals_one():
    train, more, test = toy(), toy(40, seed=5, prefix="r"), toy(9, seed=1)
    once, twice = InContext().fit(train), InContext().fit(train)
    once.update(more)
    twice.update(more.take(np.arange(15)))
    twice.update(more.take(np.arange(15, 40)))
    for a, b in zip(
        once.predict(test.queries, test.pool)["quality"], twice.predict(test.queries, test.pool)["quality"], strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_settings_and_an_empty_table_are_told():
    with pytest.raises(ConfigError, match="ridge"):
        InContext(ridge=0)
    with pytest.raises(ConfigError, match="landmarks"):
        InContext(landmarks=0)
    with pytest.raises(OutcomesError, match="at least one outcome"):
        InContext().fit(table_of(np.eye(3), np.full((3, 2), np.nan)))
