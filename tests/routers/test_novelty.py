"""Novelty: the edge keeps its promise, foreign queries lie beyond it, and text alone is enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError, ShapeError, UnknownNameError
from polyroute.routers.detectors import DETECTORS, Distance, Spread
from polyroute.routers.ngrams import ngrams
from polyroute.routers.novelty import Novelty, edges
from polyroute.types import Candidate, Outcomes, Query

WORDS = {
    "sea": "wave tide harbour sail anchor reef current vessel shore gull",
    "court": "judge verdict appeal clause witness statute claim plea jury bail",
}


def domains(n: int = 400, d: int = 8, seed: int = 0) -> Outcomes:
    """Two domains, each a cloud of its own and words of its own."""
    rng = np.random.default_rng(seed)
    own = np.arange(n) % 2
    x = rng.normal(size=(n, d)).astype(np.float32) * 0.3
    x[:, 0] += np.where(own, 3.0, -3.0)
    texts = [" ".join(rng.choice(list(WORDS.values())[k].split(), 12)) for k in own]
    queries = [Query(f"q{i}", texts[i], x[i]) for i in range(n)]
    quality = (own[:, None] == np.arange(2)).astype(float)
    return Outcomes(queries, [Candidate(c) for c in WORDS], {"quality": quality}, np.ones((n, 2), bool))


def foreign(n: int = 50, d: int = 8) -> list[Query]:
    rng = np.random.default_rng(9)
    x = rng.normal(size=(n, d)).astype(np.float32) * 0.3
    x[:, 1] += 3.0
    return [Query(f"f{i}", "今天天气怎么样" + chr(0x4E00 + i), row) for i, row in enumerate(x)]


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_tells_own_from_foreign(name):
    train, test = domains(), domains(seed=1)
    router = Novelty([name]).fit(train)
    novelty = router.predict(test.queries, test.pool)["novelty"].mean
    own = novelty[np.arange(400), np.arange(400) % 2]
    assert (own > 1).mean() < 0.12
    assert (router.predict(foreign(), test.pool)["novelty"].mean.min(axis=1) > 1).mean() > 0.95
    if name != "coverage":
        other = novelty[np.arange(400), 1 - np.arange(400) % 2]
        assert (other > own).mean() > 0.99


@pytest.mark.parametrize("reject", [0.02, 0.1, 0.3])
def test_the_share_of_own_queries_turned_away_is_what_was_asked_for(reject):
    test = domains(4000, seed=2)
    novelty = Novelty(reject=reject).fit(domains(4000)).predict(test.queries, test.pool)["novelty"].mean
    own = novelty[np.arange(4000), np.arange(4000) % 2]
    assert (own > 1).mean() == pytest.approx(reject, abs=0.25 * reject + 0.01)


def test_another_share_needs_no_other_fit():
    train, test = domains(), domains(seed=1)
    moved = Novelty(reject=0.05).fit(train).at(0.25)
    again = Novelty(reject=0.25).fit(train)
    np.testing.assert_array_equal(
        moved.predict(test.queries, test.pool)["novelty"].mean, again.predict(test.queries, test.pool)["novelty"].mean
    )
    assert moved.reject == 0.25


def test_edges_are_conformal_ranks():
    ranked, count = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1]), np.array([10, 2])
    assert edges(ranked, count, 0.2).tolist() == [9.0, 1.0]  # ranks ceil(11 * 0.8) and min(ceil(3 * 0.8), 2)
    assert edges(ranked, count, 0.5).tolist() == [6.0, 1.0]


def test_distance_is_the_mean_over_the_nearest():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 5)).astype(np.float32)
    queries = [Query(f"q{i}", embedding=row) for i, row in enumerate(x)]
    member = np.zeros((20, 2), bool)
    member[:12, 0], member[5:, 1] = True, True
    got = Distance(k=3).fit(queries, member, rng).score(queries[:4])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(4):
        for j in range(2):
            alike = np.sort(unit[member[:, j]] @ unit[i])[::-1]
            assert got[i, j] == pytest.approx(1 - alike[:3].mean(), abs=1e-6)


def test_spread_is_the_mahalanobis_distance():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    queries = [Query(f"q{i}", embedding=row.astype(np.float32)) for i, row in enumerate(x)]
    got = Spread(shrink=0.2).fit(queries, np.ones((50, 1), bool), rng).score(queries)
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    drawn = 0.8 * covariance + 0.2 * np.trace(covariance) / 4 * np.eye(4)
    expected = [np.sqrt((row - mean) @ np.linalg.inv(drawn) @ (row - mean)) for row in x]
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("text", ["", "a", "Aa", "\ud800 lone", "你好", "x" * 100_000])
def test_ngrams_of_any_text_are_buckets(text):
    found = ngrams(text, 1 << 10)
    size = len(f"\x02{text[:4000].lower()}\x03".encode("utf-8", "surrogatepass"))
    assert len(found) == sum(max(size - n + 1, 0) for n in (2, 3, 4, 5))
    assert ((found >= 0) & (found < 1 << 10)).all()


def test_equal_ngrams_fall_in_one_bucket_and_case_does_not_matter():
    assert ngrams("One Two", 1 << 12).tolist() == ngrams("one two", 1 << 12).tolist()
    assert len(np.unique(ngrams("abababab", 1 << 16, (2,)))) == 4  # ab, ba and the two ends


def test_a_candidate_good_at_nothing_is_known_by_what_it_was_asked():
    train = domains()
    failing = replace(train, values={"quality": np.where(np.arange(2) == 1, 0.0, train.values["quality"])})
    novelty = Novelty().fit(failing).predict(foreign(), train.pool)["novelty"].mean
    assert (novelty > 1).all()


def test_text_detectors_need_no_embedding():
    bare = [replace(query, embedding=None) for query in domains().queries]
    router = Novelty(["coverage"]).fit(replace(domains(), queries=bare))
    assert router.predict(bare[:3], domains().pool)["novelty"].mean.shape == (3, 2)


def test_bad_settings_say_what_was_expected():
    with pytest.raises(UnknownNameError, match="Did you mean 'distance'"):
        Novelty(["distanse"])
    with pytest.raises(ConfigError, match="detectors: expected one or more"):
        Novelty([])
    for reject in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="reject: expected a share"):
            Novelty(reject=reject)
    empty = replace(domains(4), observed=np.zeros((4, 2), bool))
    with pytest.raises(OutcomesError, match="at least 1 candidate"):
        Novelty().fit(empty)


def test_damaged_arrays_are_refused():
    params, arrays = Novelty().fit(domains()).state()
    with pytest.raises(ShapeError, match="known"):
        Novelty.from_state(params, arrays | {"distance_known": arrays["distance_known"][:-1]})
    with pytest.raises(ShapeError, match="ranked"):
        Novelty.from_state(params, arrays | {"ranked": arrays["ranked"][:-1]})
