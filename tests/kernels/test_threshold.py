import numpy as np
import pytest

from polyroute.kernels.threshold import first_above, threshold
from tests.conftest import BACKENDS


@pytest.mark.parametrize("asarray", BACKENDS)
def test_each_row_keeps_what_reaches_the_limit(asarray):
    scores = np.random.default_rng(0).random((30, 6)).round(1)  # rounded: some stand on the limit itself
    index, weight, _ = map(np.asarray, threshold(asarray(scores), 0.6, least=0))
    for row, columns, kept in zip(scores, index, weight, strict=True):
        oracle = [j for j in range(6) if row[j] >= 0.6]
        assert sorted(columns[: len(oracle)].tolist()) == oracle
        assert kept.tolist() == sorted(row[oracle].tolist(), reverse=True) + [0.0] * (6 - len(oracle))


@pytest.mark.parametrize("asarray", BACKENDS)
def test_the_best_is_kept_even_below_the_limit_unless_none_will_do(asarray):
    scores = asarray([[0.1, 0.3, 0.2]])
    assert np.asarray(threshold(scores, 0.5).weight).tolist() == [[0.3, 0.0, 0.0]]
    assert np.asarray(threshold(scores, 0.5, least=2).weight).tolist() == [[0.3, 0.2, 0.0]]
    assert np.asarray(threshold(scores, 0.5, least=0).weight).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("asarray", BACKENDS)
def test_k_caps_a_row_and_a_limit_may_differ_by_row(asarray):
    scores = asarray([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    index, weight, _ = threshold(scores, asarray([[0.1], [0.85]]), k=2)
    assert np.asarray(index).tolist() == [[0, 1], [0, 1]]
    assert np.asarray(weight).tolist() == [[0.9, 0.8], [0.9, 0.0]]


@pytest.mark.parametrize("asarray", BACKENDS)
def test_first_above_takes_the_cheapest_that_will_do_else_the_last(asarray):
    scores = np.random.default_rng(1).random((200, 4))
    limit = np.array([0.9, 0.7, 0.5, 0.99])
    index, weight, _ = map(np.asarray, first_above(asarray(scores), asarray(limit)))
    oracle = [next((j for j in range(4) if row[j] >= limit[j]), 3) for row in scores]
    assert index[:, 0].tolist() == oracle
    assert weight[:, 0].tolist() == [row[j] for row, j in zip(scores, oracle, strict=True)]
    assert set(oracle) == {0, 1, 2, 3}


def test_two_columns_are_the_weak_or_strong_rule():
    weak_is_good_enough = np.array([[0.8, 1.0], [0.4, 1.0], [0.6, 1.0]])
    assert first_above(weak_is_good_enough, 0.6).index[:, 0].tolist() == [0, 1, 0]
