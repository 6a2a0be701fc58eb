from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.offline.bootstrap import interval, resample_counts, weighted_means


def test_groups_are_drawn_whole():
    groups = np.array(["a", "b", "b", "c", "c", "c"])
    counts = resample_counts(6, 50, np.random.default_rng(0), groups)
    assert (counts[:, 1] == counts[:, 2]).all()
    assert (counts[:, 3:] == counts[:, [3]]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three groups are drawn each time
    assert resample_counts(6, 5, np.random.default_rng(0)).sum(axis=1).tolist() == [6.0] * 5


def test_means_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    values, counts = rng.random((3, 8)), resample_counts(8, 4, rng)
    for b in range(4):
        repeated = np.repeat(values, counts[b].astype(int), axis=1)
        np.testing.assert_allclose(weighted_means(values, counts)[b], repeated.mean(axis=1))


def coverage(groups_of_four: bool, by_group: bool) -> float:
    """How often a 95 % interval holds the true mean of 120 outcomes, in 150 repetitions."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(150):
        values = rng.random(30).repeat(4) if groups_of_four else rng.random(120)
        groups = np.arange(30).repeat(4) if by_group else None
        means = weighted_means(values[None], resample_counts(120, 150, rng, groups))[:, 0]
        low, high = interval(means)
        hits += low <= 0.5 <= high
    return hits / 150


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.91 <= coverage(groups_of_four=False, by_group=False) <= 0.98
    assert 0.90 <= coverage(groups_of_four=True, by_group=True) <= 0.98


def test_duplicates_drawn_apart_would_look_surer_than_they_are():
    assert coverage(groups_of_four=True, by_group=False) < 0.8


def test_infinite_results_reach_the_interval_and_missing_ones_do_not():
    assert interval(np.array([1.0, 2.0, np.nan])) == (1.0, 2.0)
    assert interval(np.append(np.arange(100.0), [np.inf] * 10)).high == np.inf
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_a_wrong_number_of_groups_is_named():
    with pytest.raises(ShapeError, match="groups"):
        resample_counts(3, 2, np.random.default_rng(0), np.array(["a"]))
