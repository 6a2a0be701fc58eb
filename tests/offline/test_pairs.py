from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.pairs import pair_summary, recovered, weak_and_strong


def test_a_perfect_order_known_by_hand():
    # Half the queries gain 1, half gain 0: called in the right order, all is recovered at a share of one half.
    gain = np.array([0.0, 1.0, 0.0, 1.0])
    found = pair_summary(gain, gain)
    assert found.apgr == pytest.approx(0.75)
    assert found.cpt_50 == pytest.approx(0.25)
    assert found.cpt_80 == pytest.approx(0.4)


def test_no_order_recovers_as_much_as_it_calls():
    gain = np.random.default_rng(0).normal(0.3, 1.0, size=50)
    assert pair_summary(np.zeros(50), gain) == pytest.approx((0.5, 0.5, 0.8))


def test_ties_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(1)
    predicted, gain = rng.integers(3, size=40) / 2, rng.integers(-1, 3, size=40).astype(float)
    order = rng.permutation(40)
    assert pair_summary(predicted, gain) == pytest.approx(pair_summary(predicted[order], gain[order]))


def test_counts_stand_for_repeated_rows():
    rng = np.random.default_rng(2)
    predicted, gain, counts = rng.normal(size=20), rng.normal(0.5, 1, size=20), rng.integers(0, 4, size=20)
    repeated = pair_summary(np.repeat(predicted, counts), np.repeat(gain, counts))
    assert pair_summary(predicted, gain, counts) == pytest.approx(repeated)


def test_brute_force_over_shares():
    rng = np.random.default_rng(3)
    predicted, gain = rng.normal(size=12), rng.normal(0.5, 1, size=12)
    share, gap = recovered(predicted, gain)
    for k in range(13):
        called = np.argsort(-predicted)[:k]
        assert np.interp(k / 12, share, gap) == pytest.approx(gain[called].sum() / gain.sum())


def test_no_gap_is_not_a_number():
    assert np.isnan(pair_summary(np.array([1.0, 2.0]), np.array([0.0, -1.0]))).all()


def test_the_dearer_model_is_the_strong_one():
    outcomes = synthetic_outcomes(50, 2, rng=np.random.default_rng(0)).outcomes
    assert weak_and_strong(outcomes) == (0, 1)
    assert weak_and_strong(outcomes.among(["model-1", "model-0"])) == (1, 0)
