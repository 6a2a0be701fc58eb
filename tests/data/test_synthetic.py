from __future__ import annotations

import numpy as np

from polyroute.data.synthetic import synthetic_outcomes


def test_outcomes_follow_their_probabilities():
    outcomes, success = synthetic_outcomes(4000, 3, rng=np.random.default_rng(0))
    error = np.sqrt((success * (1 - success)).mean(axis=0) / 4000)
    assert (np.abs(outcomes.values["quality"].mean(axis=0) - success.mean(axis=0)) < 4 * error).all()
    assert (np.diff(outcomes.values["cost"].mean(axis=0)) > 0).all()


def test_the_same_seed_gives_the_same_table_and_groups_keep_to_one_split():
    one, two = (synthetic_outcomes(100, rng=np.random.default_rng(3)).outcomes for _ in range(2))
    np.testing.assert_array_equal(one.values["quality"], two.values["quality"])
    pairs = {(group, split) for group, split in zip(one.labels["group"], one.labels["split"], strict=True)}
    assert len(pairs) == len(set(one.labels["group"])) < 100
    topics = {(group, topic) for group, topic in zip(one.labels["group"], one.labels["dataset"], strict=True)}
    assert len(topics) == len(pairs)


def test_no_queries_and_one_model_are_fine():
    assert len(synthetic_outcomes(0, rng=np.random.default_rng(0)).outcomes) == 0
    assert synthetic_outcomes(5, 1, rng=np.random.default_rng(0)).outcomes.observed.shape == (5, 1)
