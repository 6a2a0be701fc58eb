from __future__ import annotations

import numpy as np

from polyroute.routers.residual import STRENGTHS, learn_kernel, learn_left


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng


def fit(x, left, seen=None):
    seen = np.ones(left.shape, bool) if seen is None else seen
    kernel = learn_kernel(x, np.random.default_rng(0), 60)
    return kernel, learn_left(kernel, x, np.where(seen, left, 0.0), seen, np.arange(len(x)) % 5)


def test_the_kernel_is_one_at_a_landmark_and_falls_with_distance():
    x, _ = rows()
    kernel = learn_kernel(x, np.random.default_rng(0), 20)
    np.testing.assert_allclose(np.diag(kernel(kernel.landmarks)), 1.0, atol=1e-5)
    far = ((x[:50, None] - kernel.landmarks[None]) ** 2).sum(-1)
    np.testing.assert_allclose(kernel(x[:50]), np.exp(-far / kernel.scale), atol=1e-5)


def test_where_nothing_is_left_but_noise_almost_nothing_is_added():
    x, rng = rows()
    kernel, left = fit(x, rng.normal(size=(400, 3)))
    assert np.abs(kernel(x) @ left.own).mean() < 0.2


def test_what_depends_on_the_query_is_found_common_and_own():
    x, rng = rows(800)
    common, own = np.sin(x[:, :1]), np.column_stack([x[:, 1], -x[:, 1], 0 * x[:, 1]]) / 2
    kernel, left = fit(x, common + own + 0.3 * rng.normal(size=(800, 3)))
    new = rows(200, seed=9)[0]
    said = kernel(new) @ (left.common[:, None] + left.own)
    true = np.sin(new[:, :1]) + np.column_stack([new[:, 1], -new[:, 1], 0 * new[:, 1]]) / 2
    assert ((said - true) ** 2).mean() < 0.1 * true.var()
    common = kernel(new) @ left.common
    assert np.corrcoef(common, np.sin(new[:, 0]))[0, 1] > 0.95


def test_shares_are_weights_of_at_most_one_in_all():
    x, rng = rows()
    left = fit(x, x[:, :2] + rng.normal(size=(400, 2)))[1]
    assert left.shares.shape == (2, len(STRENGTHS))
    assert (left.shares >= 0).all()
    assert (left.shares.sum(axis=1) <= 1 + 1e-9).all()


def test_a_candidate_that_answered_nothing_gets_the_common_part():
    x, rng = rows()
    seen = rng.random((400, 3)) < 0.7
    seen[:, 2] = False
    left = fit(x, np.sin(x[:, :1]) + np.zeros((400, 3)), seen)[1]
    assert not left.own[:, 2].any()
    assert left.common.any()


def test_one_fold_learns_nothing_from_itself():
    x, _ = rows(10)
    kernel = learn_kernel(x, np.random.default_rng(0))
    left = learn_left(kernel, x, np.ones((10, 2)), np.ones((10, 2), bool), np.zeros(10, int))
    assert np.isfinite(left.common).all()
    assert not (kernel(x) @ left.common).any()
