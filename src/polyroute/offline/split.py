"""Fixed splits and group-aware folds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from polyroute.errors import ConfigError, OutcomesError
from polyroute.types import Array, Estimates, Outcomes


def part(outcomes: Outcomes, split: str) -> Outcomes:
    """The queries of one fixed split. Raises: OutcomesError where the table has no such split."""
    if "split" not in outcomes.labels:
        raise OutcomesError(f"expected a column 'split' to take {split!r} from, got none. Use folds instead.")
    rows = outcomes.labels["split"] == split
    if not rows.any():
        known = ", ".join(map(repr, np.unique(outcomes.labels["split"]).tolist()))
        raise OutcomesError(f"expected queries with split {split!r}, got only {known}.")
    return outcomes.take(rows)


def has_split(outcomes: Outcomes, split: str) -> bool:
    return "split" in outcomes.labels and bool((outcomes.labels["split"] == split).any())


def groups_of(outcomes: Outcomes) -> Array:
    """[n] the group of each query; a query without one is a group of its own."""
    ids = np.array([query.id for query in outcomes.queries])
    groups = outcomes.labels.get("group")
    return ids if groups is None else np.where(np.asarray(groups) == "", ids, groups)


def group_folds(groups: Array, num_folds: int = 5, seed: int = 0) -> Array:
    """[n] fold of each query, 0 to num_folds - 1, from a hash of its group and the seed.

    A group is in one fold only, and keeps it when other queries come or go; fold sizes are equal in expectation.
    """
    if num_folds < 2:
        raise ConfigError("num_folds", got=num_folds, expected="2 or more")
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
    fold = np.array([int.from_bytes(digest, "little") % num_folds for digest in digests], dtype=np.int64)
    return fold[member] if len(names) else np.empty(0, np.int64)


def folds(outcomes: Outcomes, num_folds: int = 5, seed: int = 0) -> Iterator[tuple[Outcomes, Outcomes, Array]]:
    """(train, held out, held-out rows [r]) of each fold that holds anything out.

    Raises: OutcomesError where all queries fall in one fold, so that there is nothing to learn from.
    """
    fold = group_folds(groups_of(outcomes), num_folds, seed)
    if len(np.unique(fold)) < 2:
        raise OutcomesError(
            f"expected groups of queries in at least 2 of {num_folds} folds, to hold some out, got {len(fold)} queries "
            f"in one fold. Groups fall into folds by chance: add queries, or try another seed."
        )
    for k in range(num_folds):
        if (fold == k).any():
            yield outcomes.take(fold != k), outcomes.take(fold == k), np.flatnonzero(fold == k)


def out_of_fold(
    predict: Callable[[Outcomes, Outcomes], Estimates], outcomes: Outcomes, num_folds: int = 5, seed: int = 0
) -> dict[str, Array]:
    """Metric -> [n, m] expected by a router that did not see the query or its group.

    predict: (train, held out) -> estimates for the held-out queries over `outcomes.pool`.
    """
    found: dict[str, Array] = {}
    for train, held_out, rows in folds(outcomes, num_folds, seed):
        for metric, estimate in predict(train, held_out).items():
            found.setdefault(metric, np.full(outcomes.observed.shape, np.nan))[rows] = estimate.mean
    return found
