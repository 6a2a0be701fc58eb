"""System 52, TwinRouterBench: a tier for every step of an agent run, labelled by locking, billed with its cache.

github.com/CommonstackAI/TwinRouterBench. Parts: offline/steps (labels by locking, costs with a prompt cache, scores,
and `step_tiers`, a rule of our own that knows what leaving a tier costs), data/formats/twinrouterbench (its file).
"""

from __future__ import annotations

import numpy as np

from polyroute.data.formats.twinrouterbench import StepTable
from polyroute.offline.steps import StepCost, TierScores, tier_scores
from polyroute.types import Array


def score(table: StepTable, tiers: Array, cost: StepCost | None = None) -> TierScores:
    """The benchmark's scores of one tier a step (-1: no answer) on its question bank."""
    cost = StepCost() if cost is None else cost
    usd, highest = np.zeros(len(table)), np.zeros(len(table))
    top = len(cost.prices) - 1
    for run in np.unique(table.trajectory):
        rows = np.flatnonzero(table.trajectory == run)
        sizes = (table.prompt_tokens[rows], table.shared_tokens[rows], table.output_tokens[rows], table.place[rows])
        usd[rows] = cost.price(np.maximum(tiers[rows], 0), *sizes)
        highest[rows] = cost.price(np.full(len(rows), top), *sizes)
    return tier_scores(tiers, table.gold, table.trajectory, usd, highest, table.benchmark)
