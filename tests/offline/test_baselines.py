from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import OutcomesError
from polyroute.offline.baselines import best_single, cheapest_single, dataset_means, single_models


@pytest.fixture
def outcomes():
    return synthetic_outcomes(200, 3, rng=np.random.default_rng(0)).outcomes


def test_single_models_come_best_first(outcomes):
    curve = single_models(outcomes)
    means = outcomes.values["quality"].mean(axis=0)
    np.testing.assert_allclose(curve.quality.mean(axis=1), np.sort(means)[::-1])
    np.testing.assert_allclose(sorted(curve.cost.mean(axis=1)), sorted(outcomes.values["cost"].mean(axis=0)))


def test_the_best_single_is_chosen_where_one_may_look(outcomes):
    train, test = outcomes.take(np.arange(100)), outcomes.take(np.arange(100, 200))
    train.values["quality"][:] = [0.0, 1.0, 0.0]
    test.values["quality"][:] = [0.0, 0.3, 0.9]
    assert best_single(test, train).quality.mean() == pytest.approx(0.3)
    assert best_single(test).quality.mean() == pytest.approx(0.9)
    other_order = test.among(["model-2", "model-1", "model-0"])
    assert best_single(other_order, train).quality.mean() == pytest.approx(0.3)
    assert cheapest_single(other_order).cost.mean() == pytest.approx(test.values["cost"].mean(axis=0).min())


def test_means_of_each_data_set(outcomes):
    train, test = outcomes.take(np.arange(150)), outcomes.take(np.arange(150, 200))
    train.observed[:100, 0] = False
    mean = dataset_means(train, test).mean
    for i, name in enumerate(test.labels["dataset"]):
        rows = train.labels["dataset"] == name
        for j in range(3):
            seen = rows & train.observed[:, j]
            assert mean[i, j] == pytest.approx(train.values["quality"][seen, j].mean())


def test_a_data_set_never_seen_gets_the_overall_means(outcomes):
    test = outcomes.take(np.arange(5))
    test.labels["dataset"][:] = "new"
    np.testing.assert_allclose(dataset_means(outcomes, test).mean[0], outcomes.values["quality"].mean(axis=0))


def test_without_labels_there_is_no_such_baseline(outcomes):
    bare = outcomes.take(np.arange(5))
    del bare.labels["dataset"]
    with pytest.raises(OutcomesError, match="test: expected a label 'dataset'"):
        dataset_means(outcomes, bare)
