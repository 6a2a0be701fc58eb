from __future__ import annotations

import numpy as np

from polyroute.routers.residual import STRENGTHS, learn_kernel, learn_left
from polyroute.routers.tasks import Classes


def one_task(n):
    return Classes(np.zeros(n, np.intp), np.zeros(1, np.intp), True, np.array(["all"]))


def surely(n):
    return np.ones((n, 1), np.float32)


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng


def fit(x, left, seen=None):
    seen = np.ones(left.shape, bool) if seen is None else seen
    kernel = learn_kernel(x, one_task(len(x)), np.random.default_rng(0), 60)
    alike = kernel(x, surely(len(x)))
    return kernel, learn_left(kernel, alike, np.where(seen, left, 0.0), seen, np.arange(len(x)) % 5)


def test_the_kernel_is_one_at_a_landmark_and_falls_with_distance():
    x, _ = rows()
    kernel = learn_kernel(x, one_task(len(x)), np.random.default_rng(0), 20)
    np.testing.assert_allclose(np.diag(kernel.among_landmarks()), 1.0, atol=1e-5)
    far = ((x[:50, None] - kernel.landmarks[None]) ** 2).sum(-1)
    np.testing.assert_allclose(kernel(x[:50], surely(50)), np.exp(-far / kernel.scale), atol=1e-5)


def test_where_nothing_is_left_but_noise_almost_nothing_is_added():
    x, rng = rows()
    kernel, left = fit(x, rng.normal(size=(400, 3)))
    assert np.abs(kernel(x, surely(len(x))) @ left.own).mean() < 0.2


def test_what_depends_on_the_query_is_found_common_and_own():
    x, rng = rows(800)
    common, own = np.sin(x[:, :1]), np.column_stack([x[:, 1], -x[:, 1], 0 * x[:, 1]]) / 2
    kernel, left = fit(x, common + own + 0.3 * rng.normal(size=(800, 3)))
    new = rows(200, seed=9)[0]
    said = kernel(new, surely(len(new))) @ (left.common[:, None] + left.own)
    true = np.sin(new[:, :1]) + np.column_stack([new[:, 1], -new[:, 1], 0 * new[:, 1]]) / 2
    assert ((said - true) ** 2).mean() < 0.1 * true.var()
    common = kernel(new, surely(len(new))) @ left.common
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
    kernel = learn_kernel(x, one_task(10), np.random.default_rng(0))
    left = learn_left(kernel, kernel(x, surely(10)), np.ones((10, 2)), np.ones((10, 2), bool), np.zeros(10, int))
    assert np.isfinite(left.common).all()
    assert not (kernel(x, surely(len(x))) @ left.common).any()


def test_a_query_is_like_landmarks_of_its_own_data_set_only():
    x, _ = rows(40)
    tasks = Classes(np.arange(40) % 3, np.array([0, 0, 1]), True, np.arange(3))  # 0 and 1 are of one data set
    kernel = learn_kernel(x, tasks, np.random.default_rng(0), 40)
    own = kernel.among_landmarks()
    apart = (tasks.member == 2)[:, None] != (tasks.member == 2)[None]
    assert not own[apart].any()
    assert (own[~apart] > 0).all()
    assert np.linalg.eigvalsh(own.astype(float)).min() > -1e-5
    doubtful = kernel(x[:1], np.array([[0.1, 0.2, 0.7]], np.float32))[0]
    plain = kernel(x[:1], np.array([[1.0, 0.0, 1.0]], np.float32))[0]
    np.testing.assert_allclose(doubtful, plain * np.where(tasks.member == 2, 0.7, 0.3), rtol=1e-5)
