"""The first routers on recorded outcomes: each must beat the random mix of single models at equal cost."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.recorded import recorded_embeddings
from polyroute.offline.baselines import single_models
from polyroute.offline.frontier import TRADE_OFFS, choose, realised, reference_cost, scale_of, summarise
from polyroute.routers.calibrate import Calibrated
from polyroute.routers.cluster import Cluster
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix

ROUTERS = {
    "knn": KNN,
    "logistic": Linear,
    "ridge": lambda: Linear(kind="ridge"),
    "cluster": Cluster,
    "mix": lambda: Mix([KNN(), Linear(), Cluster()]),
    "calibrated": lambda: Calibrated(KNN()),
}


def aiq(curve, scale):
    return summarise(curve.quality.mean(axis=1), curve.cost.mean(axis=1), scale).aiq


@pytest.fixture(scope="module")
def table(data_dir):
    """RouterBench in its train and valid parts; what it learns from is never the part it is judged on."""
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'polyroute[data]'")
    path = data_dir / "outcomes" / "routerbench.parquet"
    whole = load_outcomes(path)
    whole = with_embeddings(whole, recorded_embeddings([q.id for q in whole.queries], path))
    whole = whole.take(complete(whole))
    train, valid = (whole.take(whole.labels["split"] == split) for split in ("train", "valid"))
    cost = Linear("cost", tokens="linear").fit(train).predict(valid.queries, valid.pool)["cost"].mean
    return train, valid, cost


@pytest.mark.parametrize("name", ROUTERS)
def test_it_beats_the_random_mix(table, name):
    train, valid, cost = table
    quality = ROUTERS[name]().fit(train).predict(valid.queries, valid.pool)["quality"].mean
    curve = realised(name, choose(quality, cost, TRADE_OFFS, reference_cost(train)), valid)
    scale = scale_of(valid.values["quality"].mean(axis=0), valid.values["cost"].mean(axis=0))
    assert aiq(curve, scale) > aiq(single_models(valid), scale) + 0.01


def test_shuffled_outcomes_do_not(table):
    train, valid, cost = table
    order = np.random.default_rng(0).permutation(len(train))
    train.values["quality"], kept = train.values["quality"][order], train.values["quality"]
    quality = KNN().fit(train).predict(valid.queries, valid.pool)["quality"].mean
    train.values["quality"] = kept
    curve = realised("shuffled", choose(quality, cost, TRADE_OFFS, reference_cost(train)), valid)
    scale = scale_of(valid.values["quality"].mean(axis=0), valid.values["cost"].mean(axis=0))
    assert aiq(curve, scale) < aiq(single_models(valid), scale) + 0.015
