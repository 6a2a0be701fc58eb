"""What a router is held against: single models, their random mix, a table of data-set means, and the oracle."""

from __future__ import annotations

import numpy as np

from polyroute.errors import OutcomesError
from polyroute.offline.frontier import Curve, realised
from polyroute.types import Array, Estimate, Outcomes


def single_models(outcomes: Outcomes) -> Curve:
    """Each model used for everything, best first: [m, n]. The hull of these points is the cost-matched random mix.

    A router that does not beat the mix has learned nothing that a coin could not do at the same cost.
    """
    order = quality_order(outcomes)
    choices = np.repeat(order[:, None], len(outcomes), axis=1)
    return realised("random mix", choices, outcomes)


def best_single(outcomes: Outcomes, train: Outcomes | None = None) -> Curve:
    """One model for everything: the one with the best mean quality in `train`, or in this very table, [1, n]."""
    known = outcomes if train is None else train.among([candidate.id for candidate in outcomes.pool])
    return realised("best single", np.full((1, len(outcomes)), quality_order(known)[0]), outcomes)


def cheapest_single(outcomes: Outcomes) -> Curve:
    """The model with the lowest mean cost, for everything: [1, n]."""
    choices = np.full((1, len(outcomes)), int(outcomes.values["cost"].mean(axis=0).argmin()))
    return realised("cheapest", choices, outcomes)


def quality_order(outcomes: Outcomes) -> Array:
    """[m] columns by mean quality, best first; ties go to the cheaper."""
    means = {name: outcomes.values[name].mean(axis=0) for name in ("quality", "cost")}
    return np.lexsort((means["cost"], -means["quality"]))


def dataset_means(train: Outcomes, test: Outcomes) -> Estimate:
    """Quality expected by one who knows only each query's data set: its mean per model in `train`, [n, m].

    Not a router (nobody labels live traffic) but the mark that learned routers rarely pass.
    A data set not seen in `train` gets the overall mean of each model.
    """
    for name, table in (("train", train), ("test", test)):
        if "dataset" not in table.labels:
            raise OutcomesError(f"{name}: expected a label 'dataset' to make data-set means from, got none.")
    known = np.where(train.observed, train.values["quality"], np.nan)
    overall = np.nanmean(known, axis=0)
    mean = np.tile(overall, (len(test), 1))
    for name in np.unique(test.labels["dataset"]):
        rows = known[train.labels["dataset"] == name]
        count = np.isfinite(rows).sum(axis=0)
        found = np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), overall)
        mean[test.labels["dataset"] == name] = found
    return Estimate(mean)
