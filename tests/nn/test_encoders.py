"""Encoders: trained in torch, predicted in numpy, saved as arrays; newcomers without training."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, MissingExtraError, NotFittedError, UnknownCandidateError
from polyroute.nn.encoders import CrossAttention, GraphEncoder, TwoTower
from polyroute.recipes.graph_router import graph_router
from polyroute.recipes.route_profile import route_profile
from polyroute.routers.profiles import Profiles
from polyroute.types import Candidate, Outcomes

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    return found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")


def score(router, test):
    mean = router.predict(test.queries, test.pool)["quality"].mean
    return test.values["quality"][np.arange(len(test)), mean.argmax(axis=1)].mean()


@pytest.mark.parametrize("build", [GraphEncoder, lambda: TwoTower(Profiles())])
def test_they_beat_the_best_single_model_and_repeat_themselves(build, world):
    train, test = world
    router, again = build().fit(train), build().fit(train)
    single = test.values["quality"][:, train.values["quality"].mean(axis=0).argmax()].mean()
    assert score(router, test) > single + 0.01
    mean, std = router.predict(test.queries, test.pool)["quality"]
    np.testing.assert_array_equal(mean, again.predict(test.queries, test.pool)["quality"].mean)
    assert ((mean > 0) & (mean < 1) & (std > 0)).all()
    part = router.predict(test.queries[:3], [test.pool[2], test.pool[0]])["quality"].mean
    np.testing.assert_allclose(part, mean[:3, [2, 0]], rtol=1e-6)
    assert router.predict(test.queries, [])["quality"].mean.shape == (len(test), 0)
    with pytest.raises(UnknownCandidateError, match="'stranger'"):
        router.predict(test.queries, [Candidate("stranger")])
    with pytest.raises(NotFittedError):
        build().predict(test.queries, test.pool)


def test_the_graph_is_kept_as_arrays(world):
    train, test = world
    router = GraphEncoder(steps=5).fit(train)
    params, arrays = router.state()
    json.dumps(params)
    assert all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in arrays.values())
    restored = GraphEncoder.from_state(params, arrays)
    one, two = (r.predict(test.queries, test.pool)["quality"].mean for r in (router, restored))
    np.testing.assert_array_equal(one, two)


def test_a_newcomer_joins_the_graph_by_its_edges(world):
    train, test = world
    router = graph_router(network=True).fit(train.among([c.id for c in train.pool[:-1]]))
    before = router.predict(test.queries, test.pool[:-1])["quality"].mean
    new = train.take(np.arange(300)).among([train.pool[-1].id])
    router.update(new)
    told = router.predict(test.queries, test.pool)["quality"].mean
    np.testing.assert_allclose(told[:, :-1], before, rtol=1e-9)
    mixed = Outcomes(new.queries, new.pool, {"quality": 1 - new.values["quality"]}, new.observed)
    other = graph_router(network=True).fit(train.among([c.id for c in train.pool[:-1]]))
    other.update(mixed)
    wrong = other.predict(test.queries, test.pool)["quality"].mean[:, -1]
    y = test.values["quality"][:, -1]
    assert ((told[:, -1] - y) ** 2).mean() < ((wrong - y) ** 2).mean() - 0.05


def test_a_newcomer_joins_the_towers_by_a_profile(world):
    train, test = world
    router = route_profile("two-tower").fit(train.among([c.id for c in train.pool[:-1]]))
    router.extend(train.take(np.arange(100)).among([train.pool[-1].id]))
    told = router.predict(test.queries, test.pool)["quality"].mean
    assert told.shape == (len(test), 4)
    assert np.isfinite(told).all()


def test_two_prototypes_find_the_domain_as_well_as_all():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))

    def texts(n):
        y = rng.integers(5, size=n)
        return centres[y][:, None] + rng.normal(size=(n, 6, 8)), y

    (train, learn), (test, truth) = texts(200), texts(200)
    router = CrossAttention(steps=60).fit(train, learn)
    share = router.route(test)
    np.testing.assert_allclose(share.sum(axis=1), 1.0, rtol=1e-6)
    assert (share.argmax(axis=1) == truth).mean() > 0.9
    found = router.attend(test[0])
    assert found.output.shape == (6, 8)
    assert found.index.shape == (6, 2)
    assert router.attend(test[0], 5).index.shape == (6, 5)
    with pytest.raises(ConfigError, match="k"):
        CrossAttention(k=0)
    with pytest.raises(NotFittedError):
        CrossAttention().route(test)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "polyroute.nn.encoders")
    with pytest.raises(MissingExtraError, match=r"pip install 'polyroute\[nn\]'"):
        importlib.import_module("polyroute.nn.encoders")
