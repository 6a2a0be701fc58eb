from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, OutcomesError
from polyroute.offline.split import folds, group_folds, groups_of, has_split, out_of_fold, part
from polyroute.types import Estimate


@pytest.fixture
def outcomes():
    return synthetic_outcomes(200, 3, rng=np.random.default_rng(0)).outcomes


def test_a_split_is_taken_as_it_is(outcomes):
    assert set(part(outcomes, "valid").labels["split"]) == {"valid"}
    assert sum(len(part(outcomes, name)) for name in ("train", "valid", "test")) == 200
    assert has_split(outcomes, "test")
    assert not has_split(outcomes, "dev")
    with pytest.raises(OutcomesError, match="split 'dev', got only 'test', 'train', 'valid'"):
        part(outcomes, "dev")
    del outcomes.labels["split"]
    assert not has_split(outcomes, "test")
    with pytest.raises(OutcomesError, match="expected a column 'split'"):
        part(outcomes, "test")


def test_a_group_has_one_fold_whatever_stands_around_it():
    groups = np.array([f"g{i % 60}" for i in range(300)])
    fold = group_folds(groups, 5, seed=1)
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    order = np.random.default_rng(0).permutation(300)[:100]
    np.testing.assert_array_equal(group_folds(groups[order], 5, seed=1), fold[order])
    assert (group_folds(groups, 5, seed=2) != fold).any()


def test_folds_are_of_like_size():
    counts = np.bincount(group_folds(np.arange(10_000), 5))
    assert (np.abs(counts - 2000) < 4 * np.sqrt(10_000 * 0.2 * 0.8)).all()


def test_recorded_folds_do_not_change_between_versions():
    assert group_folds(np.array(["a", "b", "c", "d", "e", "f"]), 3, seed=0).tolist() == [1, 2, 1, 1, 1, 2]


def test_every_query_is_held_out_once_and_its_group_with_it(outcomes):
    held = np.zeros(200, int)
    for train, held_out, rows in folds(outcomes, 5):
        held[rows] += 1
        assert not set(train.labels["group"]) & set(held_out.labels["group"])
        assert len(train) + len(held_out) == 200
    assert (held == 1).all()


def test_predictions_come_back_in_the_order_of_the_table(outcomes):
    def lookup(train, held_out):
        assert not {q.id for q in train.queries} & {q.id for q in held_out.queries}
        return {"quality": Estimate(held_out.values["quality"])}

    np.testing.assert_array_equal(out_of_fold(lookup, outcomes)["quality"], outcomes.values["quality"])


def test_queries_without_a_group_are_on_their_own(outcomes):
    outcomes.labels["group"][:3] = ""
    assert groups_of(outcomes)[:4].tolist() == ["synthetic-0", "synthetic-1", "synthetic-2", "group-4"]
    del outcomes.labels["group"]
    assert len(set(groups_of(outcomes))) == 200


def test_one_fold_is_no_cross_validation():
    with pytest.raises(ConfigError, match="num_folds: expected 2 or more, got 1"):
        group_folds(np.arange(3), 1)


def test_one_fold_of_everything_says_what_to_do(outcomes):
    with pytest.raises(OutcomesError, match=r"at least 2 of 5 folds.*got 1 queries in one fold.*add queries"):
        next(folds(outcomes.take([0])))
