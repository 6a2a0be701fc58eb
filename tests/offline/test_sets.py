"""Sets and ranked labels, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.sets import chosen_sets, f1_by_class, macro_f1, recall_at_k, score_sets, set_f1


def test_sets_from_a_selection_and_their_score():
    chosen = chosen_sets(np.array([[0, 2], [1, -1], [-1, -1], [0, -1]]), 3)
    assert chosen.tolist() == [[True, False, True], [False, True, False], [False] * 3, [True, False, False]]
    right = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    assert set_f1(chosen, right) == pytest.approx([2 / 3, 1, 1, 0])
    assert score_sets(chosen, right) == pytest.approx((2.5 / 4, 3 / 4, (2 / 3 + 2) / 4, 1.0))
    with pytest.raises(ShapeError):
        set_f1(chosen, right[:1])


def test_recall_at_k_grows_to_one():
    scores, label = np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]), np.array([2, 0])
    assert [recall_at_k(label, scores, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]
    with pytest.raises(ConfigError):
        recall_at_k(label, scores, 0)


def test_f1_by_class_counts_rare_classes_alike():
    label, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert f1_by_class(label, said, 3)[:2] == pytest.approx([4 / 5, 2 / 3])
    assert np.isnan(f1_by_class(label, said, 3)[2])
    assert macro_f1(label, said, 3) == pytest.approx((4 / 5 + 2 / 3) / 2)
