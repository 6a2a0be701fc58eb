"""System 100, Lagrangian budget routing: one price on money decides who may be dear, for a batch or for a stream.

After "Cutting Slack" (slack-free Lagrangian duals for constrained binary programmes); that paper is about quantum
solvers and routes nothing: the transfer to routing is ours. Parts: kernels/dual, offline/lagrange, policies/budget
with policies/pace, any router of quality and cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.errors import ConfigError
from polyroute.offline.lagrange import Plan, plan_within
from polyroute.policies.budget import Budget, BudgetConfig
from polyroute.protocols import Router
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Together
from polyroute.types import Candidate, Objective, Outcomes, Query

QUALITY = Objective({"quality": 1.0})


def lagrangian() -> Together:
    """The router: quality as the shrunk mean of similar past queries, cost by a ridge on tokens and text."""
    return Together([KNN(50, 50.0), Linear("cost", tokens="linear")])


def plan_batch(
    router: Router,
    queries: Sequence[Query],
    pool: Sequence[Candidate],
    budget_usd: float,
    *,
    objective: Objective = QUALITY,
    method: str = "exact",
) -> Plan:
    """Candidates for a whole batch whose expected cost is `budget_usd` in all, with the gap to the best plan."""
    if not queries:
        raise ConfigError("queries", got=queries, expected="at least one query to plan for")
    estimates = router.predict(queries, pool)
    utility, cost = objective.utility(estimates), np.maximum(estimates["cost"].mean, 0.0)
    return plan_within(utility, cost[:, :, None], np.array([budget_usd]), method=method)


def stream(router: Router, past: Outcomes, limit: float, *, tolerance: float = 0.01, window: int = 1000) -> Budget:
    """A policy that keeps a stream to `limit` USD a request, started from what past requests would have spent."""
    budget = Budget(BudgetConfig(limit=limit, window=window, tolerance=tolerance))
    assert budget.pace is not None
    estimates = router.predict(past.queries, past.pool)
    budget.pace.learn(QUALITY.utility(estimates), np.maximum(estimates["cost"].mean, 0.0))
    return budget
