from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.offline.calibration import brier, calibration_bins, expected_calibration_error


def test_brier_in_closed_form():
    assert brier(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0
    assert brier(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == 0.25
    assert brier(np.array([[0.2, 0.9]]), np.array([[1.0, np.nan]])) == pytest.approx(0.64)
    assert np.isnan(brier(np.array([0.5]), np.array([np.nan])))


def test_a_constant_offset_is_the_calibration_error():
    rng = np.random.default_rng(0)
    truth = rng.random(2000)
    assert expected_calibration_error(truth, truth) == pytest.approx(0)
    assert expected_calibration_error(truth * 0.5 + 0.4, truth * 0.5) == pytest.approx(0.4)


def test_two_levels_known_by_hand():
    predicted = np.array([0.2] * 5 + [0.8] * 15)
    observed = np.array([0, 0, 0, 0, 1] + [1, 1, 1, 0, 0] * 3, float)
    bins = calibration_bins(predicted, observed, 2)
    np.testing.assert_allclose(bins.predicted, [0.2, 0.8])
    np.testing.assert_allclose(bins.observed, [0.2, 0.6])
    assert bins.count.tolist() == [5, 15]
    assert expected_calibration_error(predicted, observed, 2) == pytest.approx(0.15)


def test_equal_predictions_share_a_bin_and_every_pair_is_in_one():
    rng = np.random.default_rng(0)
    predicted = rng.integers(4, size=500) / 4
    bins = calibration_bins(predicted, rng.random(500))
    assert len(bins.count) <= 4
    assert bins.count.sum() == 500
    assert np.average(bins.predicted, weights=bins.count) == pytest.approx(predicted.mean())


def test_nothing_known_is_not_a_number_and_shapes_are_checked():
    assert np.isnan(expected_calibration_error(np.array([0.5]), np.array([np.nan])))
    with pytest.raises(ShapeError, match="observed"):
        brier(np.zeros(3), np.zeros(2))
