"""How good chosen sets and ranked lists of labels are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array


class SetScore(NamedTuple):
    """Means over queries, 0..1, but for the size."""

    precision: float
    recall: float
    f1: float
    size: float  # labels chosen a query


def chosen_sets(index: Array, num_labels: int) -> Array:
    """[n, m] bool from a Selection's index [n, k]; -1 is nobody."""
    chosen = np.zeros((len(index), num_labels), dtype=bool)
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    taken = index.ravel() >= 0
    chosen[rows[taken], index.ravel()[taken]] = True
    return chosen


def set_f1(chosen: Array, right: Array) -> Array:
    """[n] F1 of each set; 1 where both are empty. chosen, right: [n, m] bool."""
    if np.shape(chosen) != np.shape(right):
        raise ShapeError("right", got=np.shape(right), expected=np.shape(chosen))
    size = chosen.sum(axis=1) + right.sum(axis=1)
    return np.where(size > 0, 2 * (chosen & right).sum(axis=1) / np.maximum(size, 1), 1.0)


def score_sets(chosen: Array, right: Array) -> SetScore:
    """Precision (1 where nothing is chosen), recall (1 where nothing is right), F1 and size, means over queries.

    A hit counted when the label is somewhere in a set says little without the set's size: look at both.
    """
    f1, hit = set_f1(chosen, right), (chosen & right).sum(axis=1)
    precision = np.where(chosen.any(axis=1), hit / np.maximum(chosen.sum(axis=1), 1), 1.0)
    recall = np.where(right.any(axis=1), hit / np.maximum(right.sum(axis=1), 1), 1.0)
    return SetScore(*(float(x.mean()) for x in (precision, recall, f1, chosen.sum(axis=1))))


def recall_at_k(label: Array, scores: Array, k: int) -> float:
    """Share of queries whose label [n] int is among the k highest scores [n, m]."""
    if k < 1:
        raise ConfigError("k", got=k, expected="1 or more")
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((top == np.asarray(label)[:, None]).any(axis=1).mean())


def f1_by_class(label: Array, said: Array, num_classes: int) -> Array:
    """[m] F1 of each class; NaN for a class that is neither a label nor said. label, said: [n] int."""
    right = np.bincount(label[label == said], minlength=num_classes)
    total = np.bincount(label, minlength=num_classes) + np.bincount(said, minlength=num_classes)
    return np.where(total > 0, 2 * right / np.maximum(total, 1), np.nan)


def macro_f1(label: Array, said: Array, num_classes: int) -> float:
    """Mean F1 of the classes that occur: rare ones count as much as frequent ones."""
    return float(np.nanmean(f1_by_class(label, said, num_classes)))
