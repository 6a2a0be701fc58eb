from __future__ import annotations

import numpy as np
import pytest

from polyroute.routers.shrink import shrunk, spread


def one(values, centre, variance, kappa, doubt=None):
    """`shrunk` for a single cell of values seen."""
    y = np.array(values, dtype=float)
    sums = (np.array([[y.sum()]]), np.array([[(y**2).sum()]]), np.array([[float(len(y))]]))
    mean, std = shrunk(*sums, np.array([centre]), np.array([variance]), kappa, doubt)
    return float(mean[0, 0]), float(std[0, 0])


def test_the_mean_counts_kappa_observations_at_the_centre():
    assert one([1, 0, 1, 1], 0.25, 0.2, 4)[0] == pytest.approx((3 + 4 * 0.25) / 8)


def test_nothing_seen_gives_the_centre_and_its_doubt():
    assert one([], 0.25, 0.2, 4) == pytest.approx((0.25, np.sqrt(0.2 / 4)))
    assert one([], 0.25, 0.2, 4, np.array([0.3])) == pytest.approx((0.25, 0.3))
    assert one([], 0.25, 0.2, 0) == pytest.approx((0.25, np.sqrt(0.2)))
    assert one([], 0.25, 0.2, 0, np.array([0.3])) == pytest.approx((0.25, 0.3))


def test_without_kappa_it_is_the_mean_and_its_standard_error():
    y = np.random.default_rng(0).normal(size=4000)
    mean, std = one(y, 5.0, 1.0, 0)
    assert mean == pytest.approx(y.mean())
    assert std == pytest.approx(y.std() / np.sqrt(4000), rel=1e-3)


def test_agreeing_observations_leave_doubt():
    mean, std = one([1, 1, 1], 0.5, 0.2, 0)
    assert mean == 1.0
    assert std > 0.1


def test_doubt_is_right_where_kappa_is_right():
    """Means drawn with variance sigma^2 / kappa around the centre: the std must be the error made."""
    rng, kappa, sigma, n, cells = np.random.default_rng(1), 20.0, 0.5, 12, 4000
    truth = 0.3 + rng.normal(size=(1, cells)) * sigma / np.sqrt(kappa)
    y = truth + sigma * rng.normal(size=(n, cells))
    sums = y.sum(axis=0)[None], (y**2).sum(axis=0)[None], np.full((1, cells), float(n))
    mean, std = shrunk(*sums, np.full(cells, 0.3), np.full(cells, sigma**2), kappa)
    assert np.sqrt(np.mean((mean - truth) ** 2)) == pytest.approx(np.sqrt(np.mean(std**2)), rel=0.05)


def test_spread_nears_the_variance_and_is_never_0():
    y = np.random.default_rng(2).normal(3.0, 0.7, size=5000)
    sums = np.array([y.sum(), 3.0]), np.array([(y**2).sum(), 9.0]), np.array([5000.0, 1.0])
    many, single = spread(*sums, "energy")
    assert many == pytest.approx(0.49, rel=0.05)
    assert single == pytest.approx(0.245, rel=0.05)  # half of the pooled variance: one outcome tells nothing of it
    assert (spread(np.array([1.0]), np.array([1.0]), np.array([1.0]), "quality") > 0).all()
    assert (spread(np.array([0.0]), np.array([0.0]), np.array([1.0]), "quality") > 0).all()
