from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute import artefact
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.split import group_folds, groups_of, part
from polyroute.routers import default
from polyroute.routers.default import Default
from polyroute.routers.knn import KNN
from polyroute.types import Candidate, Outcomes
from tests.routers.tables import toy


@pytest.fixture(scope="module")
def halves():
    table = toy(1200, missing=0.0)
    fold = group_folds(groups_of(table), 2, 0)
    return table.take(fold == 0), table.take(fold == 1)


def brier(router, test, columns=slice(None)):
    y = test.values["quality"][:, columns]
    return float(((router.predict(test.queries, test.pool[columns])["quality"].mean - y) ** 2).mean())


def test_it_finds_what_the_tasks_say(halves):
    train, test = halves
    said = Default().fit(train).predict(test.queries, test.pool)["quality"].mean
    law = test.labels["dataset"] == "law"
    np.testing.assert_allclose(said[law].mean(axis=0), [0.4, 0.8, 0.4, 0.8], atol=0.06)
    np.testing.assert_allclose(said[~law].mean(axis=0), [0.8, 0.4, 0.8, 0.4], atol=0.06)
    assert brier(Default().fit(train), test) < brier(KNN().fit(train), test)


def test_it_needs_no_labels(halves):
    train, test = halves
    bare = Outcomes(train.queries, train.pool, train.values, train.observed)
    assert brier(Default().fit(bare), test) < 0.215  # 0.20 is the noise; 0.24 is each candidate's mean


def test_where_queries_tell_nothing_it_keeps_to_the_best_single():
    rng = np.random.default_rng(0)
    table = toy(800, missing=0.0)
    right = (rng.random((800, 4)) < [0.6, 0.62, 0.8, 0.5]).astype(float)
    flat = replace(table, values={**table.values, "quality": right})
    said = Default().fit(flat).predict(table.queries, table.pool)["quality"].mean
    assert (said.argmax(axis=1) == 2).mean() > 0.97


def test_words_count_where_embeddings_say_nothing():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=400)
    table = toy(400, missing=0.0)
    words = (["prove", "lemma", "integral"], ["recipe", "butter", "oven"])
    texts = [" ".join(rng.choice(words[k], size=6)) for k in kind]
    blind = [replace(q, text=t, embedding=np.ones(4, np.float32)) for q, t in zip(table.queries, texts, strict=True)]
    y = np.where(kind[:, None] == np.arange(4) % 2, 0.9, 0.1)
    told = Outcomes(blind, table.pool, {"quality": y}, np.ones((400, 4), bool), {"dataset": kind.astype(str)})
    said = Default().fit(told).predict(blind, table.pool)["quality"].mean
    np.testing.assert_allclose(said, y, atol=0.1)


def test_a_table_without_cost_yields_no_cost(halves):
    train, test = halves
    bare = replace(train, values={"quality": train.values["quality"]})
    assert list(Default().fit(bare).predict(test.queries, test.pool)) == ["quality"]


def test_thirty_answers_bring_a_new_candidate_most_of_the_way(halves):
    train, test = halves
    few = train.among(["m0", "m1", "m2"])
    new = train.among(["m3"]).take(np.arange(30))
    router = Default().fit(few)
    before = brier(router, test, slice(3, 4))
    router.update(new)
    after, full = brier(router, test, slice(3, 4)), brier(Default().fit(train), test, slice(3, 4))
    assert before - after > 0.5 * (before - full) > 0


def test_a_newcomer_worse_than_the_rest_is_not_chosen_for_its_luck():
    rng = np.random.default_rng(0)
    table = toy(600, missing=0.0)
    chance = np.array([0.6, 0.6, 0.6, 0.5])
    right = replace(table, values={**table.values, "quality": (rng.random((600, 4)) < chance).astype(float)})
    router = Default().fit(right.among(["m0", "m1", "m2"]))
    chosen, doubt = [], []
    for draw in range(20):
        lone = Candidate(f"new{draw}")
        few = right.among(["m3"]).take(rng.permutation(600)[:30])
        router.update(replace(few, pool=[lone]))
        said = router.predict(table.queries[:200], [*table.pool[:3], lone])["quality"]
        chosen.append((said.mean.argmax(axis=1) == 3).mean())
        doubt.append(said.std[:, 3].mean() > said.std[:, 0].mean())
    assert np.mean(chosen) < 0.15  # one in four is what blind choice would give
    assert all(doubt)


def test_a_newcomer_much_better_than_the_rest_is_chosen():
    rng = np.random.default_rng(0)
    table = toy(600, missing=0.0)
    right = (rng.random((600, 4)) < [0.5, 0.55, 0.6, 0.9]).astype(float)
    better = replace(table, values={**table.values, "quality": right})
    router = Default().fit(better.among(["m0", "m1", "m2"]))
    router.update(better.among(["m3"]).take(np.arange(30)))
    said = router.predict(table.queries[:200], table.pool)["quality"].mean
    assert (said.argmax(axis=1) == 3).mean() > 0.95


def test_a_few_answers_say_the_same_whether_fit_finds_them_or_update_brings_them(halves):
    train, test = halves
    rows = np.random.default_rng(0).permutation(len(train))[:30]
    seen = train.observed.copy()
    seen[:, 1] = False
    seen[rows, 1] = True
    found = Default().fit(replace(train, observed=seen)).predict(test.queries, test.pool)
    told = Default().fit(train.among(["m0", "m2", "m3"]))
    told.update(train.among(["m1"]).take(rows))
    for metric, estimate in told.predict(test.queries, test.pool).items():
        np.testing.assert_allclose(estimate.mean, found[metric].mean, atol=1e-6)
        np.testing.assert_allclose(estimate.std, found[metric].std, atol=1e-5)


def test_a_newcomer_that_has_answered_much_is_one_of_the_rest(halves, monkeypatch):
    train, test = halves
    router = Default().fit(train.among(["m0", "m1", "m2"]))
    router.update(train.among(["m3"]))
    judged = brier(router, test, slice(3, 4))
    assert judged < brier(Default().fit(train), test, slice(3, 4)) + 0.01
    router._forget()
    monkeypatch.setattr(default, "LIMIT", 30)
    assert router._answers(3) is None
    assert brier(router, test, slice(3, 4)) == pytest.approx(judged, abs=0.01)


def test_a_file_of_an_earlier_version_still_serves_and_learns(halves):
    train, test = halves
    router = Default().fit(train.among(["m0", "m1", "m2"]))
    params, arrays = router.state()
    before = {name: array for name, array in arrays.items() if not name.startswith("newcomers.") and name != "asked"}
    old = Default.from_state(params, before)
    old.update(train.among(["m3"]).take(np.arange(100)))
    said = old.predict(test.queries, test.pool)["quality"].mean
    assert np.isfinite(said).all()
    np.testing.assert_allclose(said[:, :3], router.predict(test.queries, test.pool[:3])["quality"].mean, atol=1e-6)


def test_the_rows_own_answers_say_how_hard_an_unknown_query_is(halves):
    train, _ = halves
    router = Default().fit(train.among(["m0", "m1", "m2"]))
    new = toy(60, seed=9, missing=0.0)
    told = [replace(q, text=f"never seen {i}") for i, q in enumerate(new.queries)]
    router.update(replace(new, queries=told))
    easy, mean = router.asked_[2], new.values["quality"][:, :3].mean(axis=1)
    assert np.corrcoef(easy, mean)[0, 1] > 0.6
    router.update(replace(new.among(["m3"]), queries=[replace(q, text=q.text + "!") for q in told]))
    assert (router.asked_[2, 60:] == 0).all()


def test_a_batch_says_what_each_query_alone_is_told(halves, monkeypatch):
    train, test = halves
    router = Default().fit(train)
    whole = router.predict(test.queries, test.pool)
    monkeypatch.setattr(default, "CHUNK", 7)
    for metric, estimate in router.predict(test.queries, test.pool).items():
        np.testing.assert_allclose(estimate.mean, whole[metric].mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(estimate.std, whole[metric].std, rtol=1e-2, atol=1e-4)


def test_doubt_is_larger_for_strangers(halves):
    train, test = halves
    std = Default().fit(train).predict(test.queries, [train.pool[0], Candidate("stranger")])["quality"].std
    assert std[:, 1].mean() > 2 * std[:, 0].mean()


def test_the_same_seed_gives_the_same_router_and_a_file_the_same_numbers(tmp_path):
    data = synthetic_outcomes(200, 3, rng=np.random.default_rng(0)).outcomes
    train, test = part(data, "train"), part(data, "test")
    one, other = (Default(seed=5).fit(train) for _ in range(2))
    artefact.save(one, tmp_path / "r.npz", features="toy-1", pool=train.pool)
    read = artefact.load(tmp_path / "r.npz").router
    for router in (other, read):
        for metric, estimate in one.predict(test.queries, test.pool).items():
            for a, b in zip(estimate, router.predict(test.queries, test.pool)[metric], strict=True):
                np.testing.assert_array_equal(a, b)
