"""Length, price and load: what is known of a candidate before it is tried, and what outcomes add."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError
from polyroute.routers.constant import Constant
from polyroute.routers.length import TYPICAL_TOKENS, Length
from polyroute.routers.load import TYPICAL_FIRST_TOKEN_S, TYPICAL_TOKENS_PER_S, Load
from polyroute.routers.price import Price
from polyroute.routers.running import RunningMean
from polyroute.types import Candidate, Outcomes, Profile, Query
from tests.routers.tables import queries_of, toy

CHEAP = Candidate("cheap", profile=Profile(0.5, 1.5, tokens_per_s=100.0, first_token_s=0.1))
DEAR = Candidate("dear", profile=Profile(10.0, 30.0, tokens_per_s=20.0, first_token_s=0.5))
ASKED = [Query("a", num_tokens=1000), Query("b", "x" * 400)]


def lengths(n=2000, seed=0):
    """Tokens written: log-linear in the embedding and the log of the prompt, noisy, twice as many by the second."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    tokens = rng.integers(10, 3000, size=n)
    expected = np.exp(3 + x[:, 0] + 0.3 * np.log(tokens))[:, None] * np.array([1.0, 2.0])
    y = expected * rng.lognormal(-0.5 * 0.6**2, 0.6, size=(n, 2))
    pool = [Candidate("a"), Candidate("b")]
    return Outcomes(queries_of(x, tokens=tokens), pool, {"output_tokens": y}, np.isfinite(y)), expected


def test_length_recovers_a_log_linear_law_without_the_bias_of_the_log():
    train, _ = lengths()
    test, expected = lengths(500, seed=1)
    mean, std = Length(l2=0.1).fit(train).predict(test.queries, test.pool)["output_tokens"]
    assert np.mean(mean / expected) == pytest.approx(1.0, abs=0.05)
    assert np.std(np.log(mean / expected)) < 0.1
    assert (np.abs(mean - expected) < 3 * std).mean() > 0.9


def test_length_before_any_answer_is_the_stated_constant():
    mean, std = Length().predict(queries_of(np.ones((2, 4))), [Candidate("stranger")])["output_tokens"]
    np.testing.assert_allclose(mean, TYPICAL_TOKENS)
    np.testing.assert_allclose(std, TYPICAL_TOKENS)


def test_length_of_a_candidate_nobody_measured_is_that_of_the_others_with_more_doubt():
    train, _ = lengths(400)
    queries = train.queries[:50]
    mean, std = Length().fit(train).predict(queries, [*train.pool, Candidate("stranger")])["output_tokens"]
    assert (mean[:, 2] > mean[:, :2].min(axis=1) * 0.8).all()
    assert (mean[:, 2] < mean[:, :2].max(axis=1) * 1.2).all()
    assert ((std / mean)[:, 2] > (std / mean)[:, :2].max(axis=1)).all()


def test_a_candidate_tried_once_does_not_look_shorter_than_one_never_tried():
    pool = [Candidate("tried"), Candidate("untried")]
    router = Length()
    queries = queries_of(np.zeros((3, 4)), tokens=np.full(3, 10))
    y = np.array([[3.0, np.nan]] * 3)
    router.update(Outcomes(queries, pool, {"output_tokens": y}, np.isfinite(y)))
    mean = router.predict(queries, pool)["output_tokens"].mean
    np.testing.assert_allclose(mean[:, 0], mean[:, 1], rtol=0.15)
    assert (mean < TYPICAL_TOKENS / 2).all()


def test_length_stays_within_what_the_query_allows():
    router = Length().fit(lengths(200)[0])
    queries = [replace(q, max_output=limit) for q, limit in zip(queries_of(np.ones((3, 4))), (5, None, 0), strict=True)]
    mean, std = router.predict(queries, [Candidate("a"), Candidate("stranger")])["output_tokens"]
    assert mean[0].tolist() == [5, 5]
    assert (mean[1] > 5).all()
    assert mean[2].tolist() == [0, 0]
    assert (std[0] < std[1]).all()


def test_length_updates_come_near_one_fit():
    train, _ = lengths()
    test, _ = lengths(50, seed=1)
    router = Length().fit(train.take(np.arange(1000)))
    for start in range(1000, 2000, 50):
        router.update(train.take(np.arange(start, start + 50)))
    whole = Length().fit(train).predict(test.queries, test.pool)["output_tokens"].mean
    np.testing.assert_allclose(router.predict(test.queries, test.pool)["output_tokens"].mean, whole, rtol=0.02)


def test_length_learned_from_single_answers_follows_candidate_and_prompt():
    train, _ = lengths(400)
    router = Length()
    for i in range(400):
        router.update(train.take(np.array([i])))
    assert router.line_.features_.directions.shape[1] == 2  # a constant and prompt tokens
    short, long = router.predict(queries_of(np.ones((2, 4)), tokens=np.array([50, 2000])), train.pool)[
        "output_tokens"
    ].mean
    assert (long > 1.5 * short).all()
    assert short[1] > 1.5 * short[0]


def test_length_without_its_column_is_an_error_and_without_a_value_the_constant():
    with pytest.raises(OutcomesError, match="output_tokens"):
        Length().fit(replace(toy(), values={}))
    empty = toy(5)
    empty.observed[:] = False
    assert (Length().fit(empty).predict(ASKED, [CHEAP])["output_tokens"].mean == TYPICAL_TOKENS).all()


def test_price_is_tokens_times_list_prices():
    mean, std = Price(Constant("output_tokens", 300.0, 100.0)).predict(ASKED, [CHEAP, DEAR])["cost"]
    np.testing.assert_allclose(mean, [[950e-6, 19e-3], [500e-6, 10e-3]])
    np.testing.assert_allclose(std, [[150e-6, 3e-3], [150e-6, 3e-3]])


def test_price_learns_lengths_where_the_table_has_them():
    train = lengths()[0]
    pool = [Candidate(name, profile=Profile(price_out=30.0)) for name in "ab"]
    costs = Price().fit(train).predict(train.queries, pool)["cost"].mean
    assert costs[:, 1].mean() > 1.5 * costs[:, 0].mean()
    costs = Price().fit(replace(train, values={})).predict(train.queries, pool)["cost"].mean
    np.testing.assert_array_equal(costs[:, 1], costs[:, 0])


def test_price_follows_a_profile_that_changes():
    router = Price(Constant("output_tokens", 300.0, 100.0))
    before = router.predict(ASKED, [DEAR])["cost"].mean
    half = replace(DEAR, profile=Profile(5.0, 15.0))
    np.testing.assert_allclose(router.predict(ASKED, [half])["cost"].mean, before / 2)


def test_load_starts_from_the_profile_and_stated_constants():
    router = Load(Constant("output_tokens", 300.0, 0.0))
    mean, std = router.predict(ASKED[:1], [CHEAP, DEAR, Candidate("silent")])["latency"]
    silent = TYPICAL_FIRST_TOKEN_S + 300 / TYPICAL_TOKENS_PER_S
    np.testing.assert_allclose(mean, [[3.1, 15.5, silent]])
    np.testing.assert_allclose(std, mean / np.sqrt(5.0))


def observed_latencies(factor, n, tokens=None):
    """n answers of DEAR that took `factor` times what its profile promises for 300 tokens (or those written)."""
    wrote = np.full(n, 300.0) if tokens is None else tokens
    latency = factor * (0.5 + wrote / 20.0)[:, None]
    values = {"latency": latency} | ({} if tokens is None else {"output_tokens": wrote[:, None]})
    return Outcomes(queries_of(np.ones((n, 3))), [DEAR], values, np.ones((n, 1), bool))


def test_load_moves_from_the_promise_to_what_was_seen():
    router = Load(Constant("output_tokens", 300.0, 0.0), kappa=10.0, memory=1e9)
    router.update(observed_latencies(2.0, 30))
    mean, _ = router.predict(ASKED[:1], [DEAR])["latency"]
    assert mean[0, 0] == pytest.approx(15.5 * (10 + 2 * 30) / 40)


def test_load_judges_an_answer_by_what_it_wrote():
    tokens = np.random.default_rng(0).integers(10, 2000, size=400).astype(float)
    router = Load(kappa=1.0).fit(observed_latencies(1.5, 400, tokens))
    total, square, count = router.sums_[:, 0]
    assert total / count == pytest.approx(1.5)
    assert square / count == pytest.approx(2.25)


def test_load_forgets_and_in_any_portions():
    fast_then_slow = [observed_latencies(1.0, 500), observed_latencies(3.0, 100)]
    mean = {}
    for memory in (50.0, 1e9):
        router = Load(Constant("output_tokens", 300.0, 0.0), memory=memory)
        for part in fast_then_slow:
            router.update(part)
        mean[memory] = router.predict(ASKED[:1], [DEAR])["latency"].mean[0, 0] / 15.5
    assert mean[1e9] == pytest.approx(800 / 600, rel=0.01)
    assert mean[50.0] > 2.4
    portions = Load(Constant("output_tokens", 300.0, 0.0), memory=50.0)
    for part in fast_then_slow:
        for i in range(len(part)):
            portions.update(part.take(np.array([i])))
    assert portions.predict(ASKED[:1], [DEAR])["latency"].mean[0, 0] / 15.5 == pytest.approx(mean[50.0])


def test_load_is_surer_the_more_it_saw():
    stds = []
    for n in (0, 10, 100):
        router = Load(Constant("output_tokens", 300.0, 0.0))
        router.update(observed_latencies(1.0, n))
        stds.append(router.predict(ASKED[:1], [DEAR])["latency"].std[0, 0])
    assert stds[0] > 1.5 * stds[1] > 3 * stds[2] > 0


def test_doubt_about_length_becomes_doubt_about_latency():
    std = Load(Constant("output_tokens", 300.0, 200.0), kappa=1e9).predict(ASKED[:1], [DEAR])["latency"].std
    assert std[0, 0] == pytest.approx(200 / 20, rel=1e-3)


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: Length(typical=0.0), "typical"),
        (lambda: Load(kappa=0.0), "kappa"),
        (lambda: Load(memory=1.0), "memory"),
        (lambda: Constant("quality", float("nan"), 0.1), "mean"),
        (lambda: Constant("quality", 0.5, -0.1), "std"),
    ],
)
def test_options_out_of_range_name_themselves(build, option):
    with pytest.raises(ConfigError, match=option):
        build()


def test_a_running_mean_starts_typical_shares_what_it_learns_and_follows_a_change():
    pool = [Candidate("a"), Candidate("b")]
    router = RunningMean(kappa=10.0, memory=300.0)
    queries = queries_of(np.zeros((40, 2)))
    np.testing.assert_allclose(router.predict(queries[:1], pool)["output_tokens"].mean, TYPICAL_TOKENS)
    for level in (20.0, 60.0):
        y = np.stack([np.full(40, level), np.full(40, np.nan)], axis=1)
        for _ in range(10):
            router.update(Outcomes(queries, pool, {"output_tokens": y}, np.isfinite(y)))
        mean, std = router.predict(queries[:1], pool)["output_tokens"]
        np.testing.assert_allclose(mean, level, rtol=0.6)
        np.testing.assert_allclose(mean[0, 0], mean[0, 1], rtol=0.4)
        assert std[0, 0] < std[0, 1]
