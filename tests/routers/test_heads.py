from __future__ import annotations

import numpy as np
import pytest

from polyroute.routers import heads


def rows(n=80, p=5, seed=0):
    rng = np.random.default_rng(seed)
    phi = np.hstack([np.ones((n, 1)), rng.normal(size=(n, p - 1))])
    y = (rng.random(n) < heads.sigmoid(phi @ rng.normal(size=p))).astype(float)
    return phi, y, 0.3 * rng.normal(size=n)


def slope(weight, phi, y, offset, centre, precision):
    """Gradient of the log posterior with a normal prior."""
    return phi.T @ (y - heads.sigmoid(phi @ weight + offset)) - precision @ (weight - centre)


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(heads.sigmoid(np.array([-1e4, 0.0, np.log(3), 1e4])), [0.0, 0.5, 0.75, 1.0])


def test_features_of_full_rank_are_the_centred_rows():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    phi = heads.features(x, None, None)(x, None)
    np.testing.assert_allclose(phi, np.hstack([np.ones((30, 1)), x - x.mean(axis=0)]), atol=1e-6)


def test_few_directions_are_those_of_most_variance():
    x = (np.random.default_rng(0).normal(size=(400, 3)) * [0.1, 5.0, 1.0]).astype(np.float32)
    phi = heads.features(x, 2, None)(x, None)
    assert phi.shape == (400, 3)
    centred = x - x.mean(axis=0)
    values = np.linalg.eigvalsh(centred.T @ centred)[:0:-1]
    np.testing.assert_allclose((phi[:, 1:] ** 2).sum(axis=0), values, rtol=1e-4)
    np.testing.assert_allclose(phi[:, 1] @ phi[:, 2], 0.0, atol=0.05)


def test_tokens_are_a_feature_of_mean_0_and_std_1():
    x, tokens = np.ones((3, 2), np.float32), np.array([10.0, 20.0, 30.0])
    made = heads.features(x, None, tokens)
    np.testing.assert_allclose(made(x, tokens)[:, -1], (tokens - 20) / tokens.std(), rtol=1e-6)
    alike = heads.features(x, None, np.full(3, 7.0))
    np.testing.assert_allclose(alike(x, np.full(3, 7.0))[:, -1], 0.0)


@pytest.mark.parametrize("added", [1, 3, 40])
def test_adding_rows_equals_inverting_again(added):
    phi, _, _ = rows(80)
    penalty = np.full(5, 0.7)
    grown = heads.add_rows(heads.ridge_posterior(phi[:-added], penalty), phi[-added:])
    np.testing.assert_allclose(grown, heads.ridge_posterior(phi, penalty), rtol=1e-8, atol=1e-12)


def test_logistic_stops_where_the_slope_is_0_and_its_covariance_is_the_inverse_curvature():
    phi, y, offset = rows()
    weight, covariance = heads.logistic_posterior(phi, y, offset, np.full(5, 0.4))
    np.testing.assert_allclose(slope(weight, phi, y, offset, 0.0, 0.4 * np.eye(5)), 0.0, atol=1e-4)
    step = 1e-5
    curve = [
        (slope(weight - step * e, phi, y, offset, 0.0, 0.4 * np.eye(5)) - slope(weight + step * e, phi, y, offset, 0.0,
         0.4 * np.eye(5))) / (2 * step) for e in np.eye(5)
    ]  # fmt: skip
    np.testing.assert_allclose(covariance, np.linalg.inv(curve), rtol=1e-4, atol=1e-8)


def test_logistic_bears_separable_rows_and_graded_outcomes():
    phi, _, offset = rows()
    for outcome in (np.ones(80), np.zeros(80), (phi[:, 1] > 0).astype(float), np.full(80, 0.3)):
        weight, _ = heads.logistic_posterior(phi, outcome, offset, np.full(5, 1e-3))
        np.testing.assert_allclose(slope(weight, phi, outcome, offset, 0.0, 1e-3 * np.eye(5)), 0.0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_online_laplace_finds_the_mode_of_prior_and_new_rows(scale):
    phi, y, offset = rows()
    phi = phi * np.sqrt(scale)
    centre, covariance = np.linspace(-1, 1, 5), np.diag([4.0, 1.0, 0.5, 0.5, 2.0])
    weight, after = heads.logistic_rows(centre, covariance, phi[:5], y[:5], offset[:5])
    found = slope(weight, phi[:5], y[:5], offset[:5], centre, np.linalg.inv(covariance))
    np.testing.assert_allclose(found, 0.0, atol=1e-4)
    p = heads.sigmoid(phi[:5] @ weight + offset[:5])
    expected = np.linalg.inv(np.linalg.inv(covariance) + phi[:5].T @ (phi[:5] * (p * (1 - p))[:, None]))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-9)


def test_online_laplace_over_all_rows_comes_near_the_fit():
    phi, y, offset = rows(2000)
    whole, covariance = heads.logistic_posterior(phi, y, offset, np.ones(5))
    weight, after = np.zeros(5), np.eye(5)
    for start in range(0, 2000, 10):
        part = slice(start, start + 10)
        weight, after = heads.logistic_rows(weight, after, phi[part], y[part], offset[part])
    sure = np.sqrt(np.diag(covariance))
    assert (np.abs(weight - whole) < sure).all()
    np.testing.assert_allclose(np.sqrt(np.diag(after)), sure, rtol=0.1)
