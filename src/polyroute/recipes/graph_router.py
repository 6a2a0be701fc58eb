"""System 10, GraphRouter (arXiv:2410.03834): queries and models in one graph, outcomes as edges, newcomers by a few.

Only model nodes receive messages: a model is the outcome-weighted mean of the queries it answered, read against the
query. Training hides the edges it is to foretell. The paper's three weightings are objectives.
Parts: routers/centroids (solved exactly), nn/encoders:GraphEncoder (the two-layer network, torch), policies/greedy.
"""

from __future__ import annotations

from typing import Any

from polyroute.errors import UnknownNameError
from polyroute.protocols import Router
from polyroute.routers.centroids import Centroids
from polyroute.types import Objective

WEIGHTINGS = {"performance": (1.0, 0.0), "balance": (0.5, 0.5), "cost": (0.2, 0.8)}  # effect, cost (inferred)


def graph_router(*, network: bool = False, **settings: Any) -> Router:
    """The router. network: the message-passing network in place of its solved equivalent; needs polyroute[nn].

    `update` with a newcomer's outcomes adds it without training, for both.
    """
    if not network:
        return Centroids("quality", **settings)
    from polyroute.nn.encoders import GraphEncoder

    router: Router = GraphEncoder("quality", **settings)
    return router


def weighting(name: str, reference_cost: float) -> Objective:
    """The paper's `performance`, `balance` or `cost`: effect against cost on the scale of reference_cost, USD."""
    if name not in WEIGHTINGS:
        raise UnknownNameError("weighting", name, WEIGHTINGS)
    effect, cost = WEIGHTINGS[name]
    return Objective({"quality": effect, "cost": -cost / reference_cost})
