"""Scores from comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError
from polyroute.routers.pairwise import CUTS, Pairwise, grades
from tests.routers.tables import table_of, toy


def test_grades():
    assert grades(np.array([-1.0, -0.75, -0.2, 0.0, 0.2, 0.75])).tolist() == [0, 0, 1, 2, 3, 4]
    assert grades(np.array([0.1, -0.1]), ties=0.1).tolist() == [2, 2]


def test_the_fitted_scores_are_where_the_penalised_likelihood_is_highest():
    table = toy(40, 3, 2, seed=4)
    router = Pairwise(l2=0.7, rank=None).fit(table)
    y = np.where(table.observed, table.values["quality"], np.nan)
    phi = router.features_(np.array([q.embedding / np.linalg.norm(q.embedding) for q in table.queries]), None).astype(
        float
    )

    def loss(weight):
        total = 0.5 * (np.array([0.25, 0.7, 0.7])[:, None] * weight**2).sum()
        for a in range(3):
            for b in range(a + 1, 3):
                for i in np.flatnonzero(np.isfinite(y[:, a]) & np.isfinite(y[:, b])):
                    eta = phi[i] @ (weight[:, a] - weight[:, b])
                    k = grades(np.array([y[i, a] - y[i, b]]))[0]
                    below = [1 / (1 + np.exp(-(c - eta))) for c in CUTS[k : k + 2]]
                    total -= np.log(below[1] - below[0])
        return total

    best, rng = loss(router.weight_), np.random.default_rng(0)
    for _ in range(40):
        assert loss(router.weight_ + 0.01 * rng.normal(size=router.weight_.shape)) > best


def test_what_makes_a_query_hard_for_all_does_not_count():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    hard = 0.4 * (x[:, 1] > 0)
    good = np.where(x[:, :1] > 0, [[0.5, 0.4]], [[0.4, 0.5]]) - hard[:, None] + 0.3
    router = Pairwise(l2=0.1).fit(table_of(x, good))
    mean = router.predict(table_of(x, good).queries, table_of(x, good).pool)["quality"].mean
    assert (mean.argmax(axis=1) == good.argmax(axis=1)).mean() > 0.9
    assert abs(np.corrcoef(mean[:, 0] - mean[:, 1], hard)[0, 1]) < 0.2


def test_wrong_settings():
    with pytest.raises(ConfigError, match="l2"):
        Pairwise(l2=0.0)
    with pytest.raises(ConfigError, match="ties"):
        Pairwise(ties=0.8)
    with pytest.raises(OutcomesError, match="at most 64 candidates"):
        Pairwise().fit(table_of(np.ones((2, 2), np.float32), np.ones((2, 65))))
