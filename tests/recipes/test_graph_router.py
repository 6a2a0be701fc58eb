"""GraphRouter: the solved router by default, its three weightings, and the network on request."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import UnknownNameError
from polyroute.recipes.graph_router import WEIGHTINGS, graph_router, weighting
from polyroute.routers.centroids import Centroids
from polyroute.types import Estimate


def test_it_beats_the_best_single_model_where_models_have_topics():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    train, test = found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")
    router = graph_router()
    assert isinstance(router, Centroids)
    estimate = router.fit(train).predict(test.queries, test.pool)["quality"].mean
    quality = test.values["quality"]
    single = quality[:, train.values["quality"].mean(axis=0).argmax()].mean()
    assert quality[np.arange(len(test)), estimate.argmax(axis=1)].mean() > single + 0.02


def test_the_weightings_trade_effect_for_cost():
    estimates = {"quality": Estimate(np.array([[0.9, 0.5]])), "cost": Estimate(np.array([[0.01, 0.001]]))}
    chosen = [weighting(name, 0.01).utility(estimates).argmax() for name in WEIGHTINGS]
    assert chosen == [0, 1, 1]
    assert weighting("balance", 0.01).utility(estimates)[0] == pytest.approx([0.5 * 0.9 - 0.5, 0.5 * 0.5 - 0.05])
    with pytest.raises(UnknownNameError, match="Did you mean 'cost'"):
        weighting("costs", 0.01)
