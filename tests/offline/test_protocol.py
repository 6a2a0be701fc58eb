"""The common protocol on the public tables: what the baselines score there was published with the tables.

Published to three digits; routellm's were taken without MT-Bench (10 of its 2,032 test queries).
"""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.recorded import recorded_embeddings
from polyroute.offline.baselines import best_single, dataset_means, single_models
from polyroute.offline.choose import cost_router
from polyroute.offline.frontier import TRADE_OFFS, choose, realised, reference_cost, scale_of, summarise
from polyroute.offline.split import part
from polyroute.routers.knn import KNN

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")

PUBLISHED = {  # table -> random mix, knows the data-set label, oracle, kNN
    "routerbench": (0.809, 0.834, 0.981, 0.828),
    "llmrouter9": (0.610, 0.669, 0.806, 0.658),
    "routellm": (0.750, 0.769, 0.860, 0.779),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def table(request, data_dir):
    """Name, train and test, with the recorded embeddings."""
    path = data_dir / "outcomes" / f"{request.param}.parquet"
    outcomes = load_outcomes(path)
    outcomes = outcomes.take(complete(outcomes) & (outcomes.labels["dataset"] != "mt_bench"))
    outcomes = with_embeddings(outcomes, recorded_embeddings([query.id for query in outcomes.queries], path))
    return request.param, part(outcomes, "train"), part(outcomes, "test")


def aiq(curve, test):
    scale = scale_of(test.values["quality"].mean(axis=0), test.values["cost"].mean(axis=0))
    return summarise(curve.quality.mean(axis=1), curve.cost.mean(axis=1), scale).aiq


def chosen(quality, cost, train, test):
    return aiq(realised("", choose(quality, cost, TRADE_OFFS, reference_cost(train)), test), test)


def test_the_baselines_are_as_published(table):
    name, train, test = table
    mix, label, oracle, neighbours = PUBLISHED[name]
    cost = cost_router().fit(train).predict(test.queries, test.pool)["cost"].mean
    assert aiq(single_models(test), test) == pytest.approx(mix, abs=0.0006)
    assert chosen(test.values["quality"], test.values["cost"], train, test) == pytest.approx(oracle, abs=0.0006)
    assert chosen(dataset_means(train, test).mean, cost, train, test) == pytest.approx(label, abs=0.002)
    knn = KNN(k=80, kappa=0).fit(train).predict(test.queries, test.pool)["quality"].mean
    assert chosen(knn, cost, train, test) == pytest.approx(neighbours, abs=0.004)


def test_where_one_price_serves_all_the_figure_is_the_mean_score(data_dir):
    outcomes = load_outcomes(data_dir / "outcomes" / "routerdc7.parquet")
    train, test = part(outcomes, "train"), part(outcomes, "test")
    assert aiq(best_single(test, train), test) == pytest.approx(0.565, abs=0.0006)
    label = dataset_means(train, test).mean
    assert chosen(label, np.zeros(label.shape), train, test) == pytest.approx(0.624, abs=0.0006)
    oracle = chosen(test.values["quality"], test.values["cost"], train, test)
    assert oracle == pytest.approx(0.827, abs=0.0006)
