"""AUC against counting every pair, and within candidates."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.offline.ranking import auc, intra_auc


def by_pairs(predicted, observed):
    won, lost = predicted[observed >= 0.5], predicted[observed < 0.5]
    return np.mean([(a > b) + 0.5 * (a == b) for a in won for b in lost])


@pytest.mark.parametrize("seed", range(5))
def test_it_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    predicted, observed = rng.integers(5, size=40) / 4, rng.integers(2, size=40).astype(float)
    assert auc(predicted, observed) == pytest.approx(by_pairs(predicted, observed))
    assert auc(-predicted, observed) == pytest.approx(1 - auc(predicted, observed))


def test_gaps_are_left_out_and_nothing_to_rank_is_nan():
    assert auc(np.array([0.9, 0.1, 0.5]), np.array([1.0, 0.0, np.nan])) == 1.0
    assert np.isnan(auc(np.array([0.9, 0.1]), np.ones(2)))
    with pytest.raises(ShapeError, match="observed"):
        auc(np.zeros(3), np.zeros(2))


def test_strength_does_not_count_within_a_candidate():
    observed = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    strength = np.tile(observed.mean(axis=0), (4, 1))
    assert auc(strength.ravel(), observed.ravel()) == 0.75
    assert intra_auc(strength, observed).tolist() == [0.5, 0.5]
    with pytest.raises(ShapeError):
        intra_auc(strength, observed[:3])
