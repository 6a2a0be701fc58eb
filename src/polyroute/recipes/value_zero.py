"""System 45, V0 (value at state zero): the chance that a model solves a prompt, from its past answers alone.

A model is described by (prompt, right or wrong) pairs and by nothing else; a newcomer by a few dozen of them, with
no training. The value routes at a price and says how many rollouts a prompt deserves.
Parts: routers/incontext, policies/greedy, kernels/rollouts, offline/ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels.rollouts import allocate_rollouts
from polyroute.routers.incontext import InContext
from polyroute.types import Array, Candidate, Objective, Outcomes, Query


def value_zero(**settings: Any) -> InContext:
    """The router: fit on the models whose outcomes are known, then `describe` newcomers."""
    return InContext("quality", **settings)


def describe(router: InContext, candidate: Candidate, queries: Sequence[Query], right: Sequence[float] | Array) -> None:
    """Give a model its context: what it scored, 0..1, on some queries. About 30 help, 250 are plenty."""
    scores = np.asarray(right, dtype=float)
    if scores.shape != (len(queries),):
        raise ShapeError("right", got=scores.shape, expected=(len(queries),))
    y = scores[:, None]
    router.update(Outcomes(queries, [candidate], {router.metric: y}, np.isfinite(y)))


def objective(share: float, reference_cost: float) -> Objective:
    """The label V0 routes by: share x success + (1 - share) x (1 - cost / reference_cost). reference_cost: USD."""
    if not 0 <= share <= 1:
        raise ConfigError("share", got=share, expected="a weight of success, 0 to 1")
    return Objective({"quality": share, "cost": -(1 - share) / reference_cost})


def rollouts(router: InContext, candidate: Candidate, queries: Sequence[Query], total: int, high: int = 128) -> Array:
    """How many answers to sample for each query from this model in training, [n] int, `total` in all."""
    chance = router.predict(queries, [candidate])["quality"].mean[:, 0]
    return allocate_rollouts(chance, total, high=high)
