from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError
from polyroute.routers.constant import Constant
from polyroute.routers.linear import Linear
from polyroute.types import Candidate, Outcomes
from tests.routers.tables import queries_of, renamed, table_of, toy


def unit(queries):
    x = np.stack([q.embedding for q in queries]).astype(float)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ridge_by_hand(train, test, l2, metric):
    """Weighted least squares with the penalty written as extra rows, a candidate at a time: (mean, std over noise)."""
    y = np.where(train.observed, train.values[metric], np.nan)
    means, stds = [], []
    for j in range(y.shape[1]):
        seen = np.isfinite(y[:, j])
        x = np.hstack([np.ones((seen.sum(), 1)), unit(train.queries)[seen]])
        root = np.diag(np.sqrt([1e-6] + [l2] * (x.shape[1] - 1)))
        weight, *_ = np.linalg.lstsq(np.vstack([x, root]), np.append(y[seen, j], np.zeros(x.shape[1])), rcond=None)
        z = np.hstack([np.ones((len(test), 1)), unit(test.queries)])
        means.append(z @ weight)
        stds.append(np.sqrt(np.einsum("np,pq,nq->n", z, np.linalg.inv(x.T @ x + root**2), z)))
    return np.stack(means, axis=1), np.stack(stds, axis=1)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_ridge_is_least_squares_with_a_penalty(missing):
    train, test = toy(90, missing=missing), toy(20, seed=1)
    mean, std = Linear("latency", l2=0.5, rank=None).fit(train).predict(test.queries, test.pool)["latency"]
    by_hand, over_noise = ridge_by_hand(train, test, 0.5, "latency")
    np.testing.assert_allclose(mean, np.maximum(by_hand, 0), rtol=1e-4)
    noise = std / over_noise
    np.testing.assert_allclose(noise, np.repeat(noise[:1], 20, axis=0), rtol=1e-3)


def test_a_full_table_needs_one_posterior_for_all_candidates():
    assert Linear(kind="ridge").fit(toy(90, missing=0.0)).posterior_.shape[0] == 1
    assert Linear(kind="ridge").fit(toy(90, missing=0.4)).posterior_.shape[0] == 4


def test_ridge_recovers_a_line_and_the_noise_around_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 5))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    true = rng.normal(size=(5, 2))
    table = table_of(x, x @ true + 7 + 0.3 * rng.normal(size=(4000, 2)), "energy")
    router = Linear("energy", l2=1e-3).fit(table)
    test = rng.normal(size=(30, 5))
    mean = router.predict(queries_of(test), table.pool)["energy"].mean
    truth = test / np.linalg.norm(test, axis=1, keepdims=True) @ true + 7
    np.testing.assert_allclose(mean, truth, atol=0.05)
    np.testing.assert_allclose(np.sqrt(router._noise()), 0.3, rtol=0.05)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_the_doubt_is_the_error_made_on_average(kind):
    """Weights drawn from the prior the penalty stands for: the std must be the error of the mean."""
    rng, errors, stds, l2 = np.random.default_rng(0), [], [], 1.0
    for _ in range(40):
        x = rng.normal(size=(150, 8))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        score = x @ rng.normal(size=(8, 3)) / np.sqrt(l2)
        chance = 1 / (1 + np.exp(-score))
        y = (rng.random((150, 3)) < chance).astype(float) if kind == "logistic" else score + rng.normal(size=(150, 3))
        train = table_of(x[:100], y[:100], "quality" if kind == "logistic" else "energy")
        [estimate] = (
            Linear(*train.values, kind=kind, l2=l2).fit(train).predict(queries_of(x[100:]), train.pool).values()
        )
        errors.append(estimate.mean - (chance if kind == "logistic" else score)[100:])
        stds.append(estimate.std)
    ratio = np.sqrt(np.mean(np.square(errors))) / np.sqrt(np.mean(np.square(stds)))
    assert 0.9 < ratio < 1.15


def test_logistic_beats_the_overall_mean_where_a_line_separates():
    train, test = toy(400, seed=0), toy(400, seed=1)
    mean = Linear(l2=1.0).fit(train).predict(test.queries, test.pool)["quality"].mean
    y, seen = test.values["quality"], test.observed
    overall = np.broadcast_to(np.nanmean(train.values["quality"], axis=0), y.shape)
    assert np.mean((mean - y)[seen] ** 2) < 0.9 * np.mean((overall - y)[seen] ** 2)


@pytest.mark.parametrize("step", [1, 17])
def test_ridge_updates_equal_one_fit(step):
    train, test = toy(90), toy(20, seed=1)
    router = Linear("latency", rank=None).fit(train.take(np.arange(5)))
    for start in range(5, 90, step):
        router.update(train.take(np.arange(start, min(start + step, 90))))
    found = router.predict(test.queries, test.pool)["latency"]
    expected = Linear("latency", rank=None).fit(train).predict(test.queries, test.pool)["latency"]
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-3)


def test_ridge_updates_after_a_prior_equal_one_fit_on_the_same_features():
    train, test, prior = toy(90), toy(20, seed=1), Constant("latency", 2.0, 1.0)
    router = Linear("latency", rank=None, prior=prior).fit(train)
    expected = router.predict(test.queries, test.pool)["latency"]
    again = Linear("latency", rank=None, prior=prior).fit(train.take(np.arange(5)))
    again.features_ = router.features_
    again._start()
    for start in range(0, 90, 7):
        again.update(train.take(np.arange(start, min(start + 7, 90))))
    found = again.predict(test.queries, test.pool)["latency"]
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-3)


def test_few_rows_keep_all_directions():
    assert Linear(rank=3).fit(toy(5, missing=0.0)).features_.directions.shape == (6, 7)
    assert Linear(rank=3).fit(toy(6, missing=0.0)).features_.directions.shape == (6, 4)


def test_a_ridge_updated_with_full_rows_still_shares_one_posterior():
    train = toy(90, missing=0.0)
    router = Linear(kind="ridge").fit(train.take(np.arange(30)))
    router.update(train.take(np.arange(30, 90)))
    assert len(router.posterior_) == 1


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_learning_a_candidate_online_leaves_the_others_alone(kind):
    train, test = toy(60), toy(20, seed=1)
    router = Linear(kind=kind).fit(train)
    before = router.predict(test.queries, test.pool)["quality"].mean
    router.update(renamed(toy(60, seed=5), ["a", "b", "c", "d"]))
    np.testing.assert_allclose(router.predict(test.queries, test.pool)["quality"].mean, before, rtol=1e-9)


def test_logistic_updates_come_near_one_fit():
    train, test = toy(600), toy(20, seed=1)
    router = Linear(rank=None).fit(train.take(np.arange(200)))
    for start in range(200, 600, 20):
        router.update(train.take(np.arange(start, start + 20)))
    found = router.predict(test.queries, test.pool)["quality"]
    expected = Linear(rank=None).fit(train).predict(test.queries, test.pool)["quality"]
    assert (np.abs(found.mean - expected.mean) < 0.5 * expected.std).all()
    np.testing.assert_allclose(found.std, expected.std, rtol=0.1)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_few_outcomes_stay_near_the_prior_and_many_leave_it(kind):
    prior, test = Constant("quality", 0.1, 0.2), toy(20, seed=1)
    few = Linear(kind=kind, prior=prior).fit(toy(1, missing=0.0)).predict(test.queries, test.pool)["quality"]
    many = Linear(kind=kind, prior=prior).fit(toy(2000, missing=0.0)).predict(test.queries, test.pool)["quality"]
    assert np.abs(few.mean - 0.1).max() < 0.2
    assert np.abs(many.mean.mean() - 0.6) < 0.05
    assert many.std.mean() < 0.5 * few.std.mean()


def test_a_stranger_gets_the_prior_s_mean_and_doubt():
    router = Linear(prior=Constant("quality", 0.9, 0.123)).fit(toy())
    mean, std = router.predict(toy(3, seed=1).queries, [Candidate("m0"), Candidate("stranger")])["quality"]
    assert mean[:, 1].tolist() == [0.9] * 3
    assert std[:, 1].tolist() == [0.123] * 3


def test_cost_is_linear_in_prompt_tokens():
    rng = np.random.default_rng(0)
    tokens, x = rng.integers(10, 2000, size=300), rng.normal(size=(300, 4))
    cost = tokens[:, None] * np.array([1e-6, 5e-6]) + 2e-4
    table = table_of(x, cost, "cost")
    table = Outcomes(queries_of(x, tokens=tokens), table.pool, table.values, table.observed)
    asked = queries_of(x[:2], tokens=np.array([100, 10_000]))
    mean = Linear("cost", tokens="linear", l2=0.1).fit(table).predict(asked, table.pool)["cost"].mean
    np.testing.assert_allclose(mean, [[3e-4, 7e-4], [0.0102, 0.0502]], rtol=0.01)


def test_outcomes_that_are_no_shares_are_refused_by_logistic():
    with pytest.raises(OutcomesError, match="ridge"):
        Linear("latency", kind="logistic").fit(toy())


def test_a_table_without_outcomes_cannot_be_fitted():
    with pytest.raises(OutcomesError, match="at least one outcome"):
        Linear().fit(toy().take(np.zeros(0, int)))


@pytest.mark.parametrize(
    ("option", "value"), [("kind", "cubic"), ("l2", 0.0), ("l2", float("nan")), ("rank", -1), ("tokens", "square")]
)
def test_options_out_of_range_name_themselves(option, value):
    with pytest.raises(ConfigError, match=option):
        Linear(**{option: value})


def test_replicas_of_a_ridge_merge_to_what_one_would_have_learned():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    y = np.where(rng.random((240, 4)) < 0.4, rng.random((240, 4)), np.nan)
    table = table_of(x, y)
    first, later = table.take(np.arange(80)).among(["m0", "m1", "m2"]), table.take(np.arange(80, 240))

    def fresh():
        return Linear(kind="ridge", l2=0.5, rank=None, prior=Constant("quality", 0.4, 0.3)).fit(first)

    serial, one, other = fresh(), fresh(), fresh()
    serial.update(later)
    one.update(later.take(np.arange(50)))
    other.update(later.take(np.arange(50, 160)).among(["m3", "m1", "m0", "m2"]))
    one.merge(other, fresh())
    found, expected = (r.predict(table.queries, table.pool)["quality"] for r in (one, serial))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-7)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-4)
    with pytest.raises(ConfigError, match="only its statistics are sums"):
        Linear(l2=1.0).fit(first).merge(Linear(l2=1.0).fit(first), fresh())
    with pytest.raises(ConfigError, match="replicas of one fitted router"):
        one.merge(Linear(kind="ridge", l2=2.0, rank=None).fit(first), fresh())
