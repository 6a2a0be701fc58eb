"""Routers beside honest baselines on one table, with 95 % bootstrap intervals over groups of near-duplicates.

python examples/frontier.py [TABLE.parquet]      without a table: a synthetic one whose truth is known
"""

import sys

import numpy as np

from polyroute import Estimate, Outcomes
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.baselines import best_single, dataset_means, single_models
from polyroute.offline.compare import compare, resamples_of
from polyroute.offline.frontier import TRADE_OFFS, Curve, choose, realised, reference_cost
from polyroute.offline.split import part
from polyroute.routers.cluster import Cluster
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear


def load(arguments: list[str]) -> Outcomes:
    """A table of outcomes that every model answered, with embeddings."""
    if not arguments:
        return synthetic_outcomes(1_500, 4, rng=np.random.default_rng(0)).outcomes
    from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
    from polyroute.signals import featuriser

    outcomes = load_outcomes(arguments[0])
    outcomes = outcomes.take(complete(outcomes))
    return with_embeddings(outcomes, featuriser("static-1")([query.text for query in outcomes.queries]))


def main(arguments: list[str]) -> int:
    outcomes = load(arguments)
    train, valid = part(outcomes, "train"), part(outcomes, "valid")  # the test split is for one final look
    cost = Linear("cost", tokens="linear").fit(train).predict(valid.queries, valid.pool)["cost"].mean

    def curve(name: str, quality: Estimate) -> Curve:
        return realised(name, choose(quality.mean, cost, TRADE_OFFS, reference_cost(train)), valid)

    routers = {"shrunk kNN": KNN(), "clusters": Cluster(), "logistic heads": Linear("quality")}
    curves = [curve(n, r.fit(train).predict(valid.queries, valid.pool)["quality"]) for n, r in routers.items()]
    curves += [single_models(valid), best_single(valid, train)]
    if "dataset" in valid.labels:
        curves.append(curve("data-set oracle", dataset_means(train, valid)))
    curves.append(curve("oracle", Estimate(valid.values["quality"])))
    rows = compare(curves, valid, resamples_of(valid, np.random.default_rng(1), 200), against=["random mix"])
    print(f"{len(valid)} queries, {len(valid.pool)} models\n{'':<16} {'AIQ':>6}  95 % interval   over random mix")
    for row in rows:
        low, high = row.intervals["aiq"]
        gain = row.difference.get("random mix")
        over = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else ""
        print(f"{row.name:<16} {row.summary.aiq:>6.3f}  [{low:.3f}, {high:.3f}]  {over}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
