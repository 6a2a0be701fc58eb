"""Lagrangian budgets: a batch with its certificate, and a stream that keeps to its limit."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.decide import decide
from polyroute.errors import ConfigError
from polyroute.offline.lagrange import window_excess
from polyroute.recipes.lagrangian import QUALITY, lagrangian, plan_batch, stream


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(1)).outcomes
    split = found.labels["split"]
    train, test = found.take(split == "train"), found.take(split != "train")
    return lagrangian().fit(train), train, test


@pytest.mark.parametrize("method", ["exact", "bundle"])
def test_a_batch_keeps_its_budget_and_proves_what_it_leaves(world, method):
    router, _, test = world
    estimates = router.predict(test.queries, test.pool)
    means = estimates["cost"].mean.mean(axis=0)
    budget = float((means.min() + 0.3 * (means.max() - means.min())) * len(test))
    plan = plan_batch(router, test.queries, test.pool, budget, method=method)
    assert plan.feasible
    assert 0.98 * budget <= plan.use[0] <= budget * (1 + 1e-9)
    assert 0 <= plan.gap <= np.ptp(estimates["quality"].mean, axis=1).max()
    assert plan.value > estimates["quality"].mean[:, means.argmin()].sum()


def test_a_stream_starts_at_the_price_of_the_past_and_keeps_every_window(world):
    router, train, test = world
    means = test.values["cost"].mean(axis=0)
    limit = float(means.min() + 0.3 * (means.max() - means.min()))
    policy, paid, rng = stream(router, train, limit, window=200, tolerance=0.05), [], np.random.default_rng(0)
    assert policy.price > 0
    column = {candidate.id: j for j, candidate in enumerate(test.pool)}
    for i in range(len(test)):
        (made,) = decide(test.queries[i : i + 1], test.pool, router, policy, QUALITY, rng=rng)
        paid.append(float(test.values["cost"][i, column[made.candidate_ids[0]]]))
        policy.spent(paid[-1])
    assert np.abs(window_excess(np.array(paid), limit, 200)).max() <= 0.1


def test_nothing_to_plan_is_told(world):
    router, _, test = world
    with pytest.raises(ConfigError, match="queries: expected at least one"):
        plan_batch(router, [], test.pool, 1.0)
