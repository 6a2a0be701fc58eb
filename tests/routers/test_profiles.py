"""Profiles: closed forms of the aggregation, what centring is for, newcomers, the text a person reads."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.routers.cosine import Cosine
from polyroute.routers.profiles import Profiles
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Candidate
from tests.routers.tables import table_of, toy


def unit(x):
    return unit_rows(np.asarray(x))


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    return found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")


def test_depth_0_is_the_mean_of_queries_weighted_by_the_advantage():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.random((40, 3))
    profiles = Profiles(kappa=0.0).fit(table_of(x.astype(np.float32), y))
    q = unit(x.astype(np.float32))
    q = q - q.mean(axis=0)
    lead = y - y.mean(axis=1, keepdims=True)
    expected = (lead - lead.mean(axis=0)).T @ q / 40
    np.testing.assert_allclose(profiles.vectors(["m2", "m0"]), expected[[2, 0]], atol=1e-6)


def test_one_round_is_the_weighted_mean_again_and_many_make_all_alike(world):
    train, _ = world
    by_depth = {depth: Profiles(depth=depth).fit(train) for depth in (0, 1, 2, 6)}
    ids = [c.id for c in train.pool]
    cosine = (unit(by_depth[0].vectors(ids)) * unit(by_depth[1].vectors(ids))).sum(axis=1)
    assert (cosine > 0.99).all()
    likeness = [profiles.likeness() for profiles in by_depth.values()]
    assert likeness[0] < 0.3
    assert likeness[-1] > 0.9
    assert likeness[2] > likeness[1]


def test_without_centring_every_profile_is_the_mean_query():
    table = toy(200)
    for query in table.queries:
        query.embedding[:] += 3.0  # a direction all share
    assert Profiles(center=False).fit(table).likeness() > 0.99
    assert Profiles().fit(table).likeness() < 0.5


def test_a_newcomer_extends_and_the_others_stay(world):
    train, _ = world
    others = [c.id for c in train.pool[:-1]]
    name = train.pool[-1].id
    profiles = Profiles().fit(train.among(others))
    before = profiles.vectors(others)
    assert profiles.extend(train.take(np.arange(200)).among([name]), text="A new one.") is profiles
    np.testing.assert_array_equal(before, profiles.vectors(others))
    whole = Profiles().fit(train).vectors([name])
    assert (unit(profiles.vectors([name])) * unit(whole)).sum() > 0.5
    assert profiles.text(name).startswith("A new one. Mean score 0.")
    again = profiles.extend(train.take(np.arange(300)).among([name]))
    assert again.ids_ == [*others, name]
    assert again.history_[name].count == 300
    assert again.text(name).startswith("A new one.")


def test_history_and_text_say_what_the_outcomes_said(world):
    train, _ = world
    name = train.pool[0].id
    profiles = Profiles().fit(train, {name: "Small and quick."})
    history = profiles.history_[name]
    label, y = train.labels["dataset"], train.values["quality"][:, 0]
    assert history.count == len(train)
    assert history.level == pytest.approx(y.mean())
    assert history.by_task == pytest.approx({str(t): y[label == t].mean() for t in np.unique(label)})
    assert profiles.text(name, best=1).startswith("Small and quick. Mean score")
    assert profiles.text(name, best=1).count("topic") == 1


def test_flat_profiles_are_the_vectors_given(world):
    train, _ = world
    vectors = {c.id: np.eye(16)[j] for j, c in enumerate(train.pool)}
    profiles = Profiles("flat").fit(train, vectors=vectors)
    np.testing.assert_allclose(profiles.vectors([train.pool[1].id])[0] + profiles.mean_, np.eye(16)[1])
    few = train.take(np.arange(5)).among([train.pool[0].id])
    few.pool[0] = Candidate("new")
    with pytest.raises(UnknownCandidateError, match="'new'"):
        profiles.extend(few)
    assert profiles.extend(few, vector=np.eye(16)[9]).vectors(["new"]).shape == (1, 16)
    with pytest.raises(UnknownCandidateError):
        Profiles("flat").fit(train, vectors={})


def test_the_cosine_router_routes_by_profiles(world):
    train, test = world
    router = Cosine(Profiles()).fit(train)
    mean, std = router.predict(test.queries, test.pool)["quality"]
    quality = test.values["quality"]
    single = quality[:, train.values["quality"].mean(axis=0).argmax()].mean()
    assert quality[np.arange(len(test)), mean.argmax(axis=1)].mean() > single + 0.02
    assert ((mean >= 0) & (mean <= 1)).all()
    assert (std > 0).all()
    part = router.predict(test.queries, [test.pool[2], test.pool[0]])["quality"].mean
    np.testing.assert_allclose(part, mean[:, [2, 0]])
    assert router.predict([], test.pool)["quality"].mean.shape == (0, 4)
    few = train.take(np.arange(60)).among([train.pool[0].id])
    few.pool[0] = Candidate("new")
    router.extend(few)
    with_new = router.predict(test.queries, [Candidate("new"), *test.pool])["quality"].mean
    np.testing.assert_allclose(with_new[:, 1:], mean)


def test_misuse_is_told(world):
    train, _ = world
    with pytest.raises(ConfigError, match="kind"):
        Profiles("round")
    with pytest.raises(ConfigError, match="depth"):
        Profiles(depth=-1)
    with pytest.raises(NotFittedError):
        Profiles().vectors(["m0"])
    with pytest.raises(NotFittedError):
        Cosine(Profiles()).predict([], [])
    with pytest.raises(UnknownCandidateError, match="'stranger'"):
        Profiles().fit(train).vectors(["stranger"])
    with pytest.raises(OutcomesError, match="one newcomer"):
        Profiles().fit(train).extend(train)
    with pytest.raises(OutcomesError, match="at least one outcome"):
        Profiles().fit(table_of(np.eye(3), np.full((3, 2), np.nan)))
    assert embeddings(train.queries).shape[1] == 16
