"""System 30, R2-Reasoner (arXiv:2506.05901): a problem in steps, each for the cheapest model that will do.

The published system fine-tunes a decomposer and an allocator, each a language model, and alternates GRPO between them
with a binary final reward. Here: any model decomposes (`flows/traces.parse_steps`), the allocator is a head a model on
the step's features, learned from grouped search, and a doubtful step may be done again by a strong model.
Parts: flows/allocated, flows/traces, offline/allocation, routers/linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.routers.linear import Linear
from polyroute.types import Array, Candidate, Outcomes, Query


class StepAllocator:
    """The model of each step, learned from labels: the cheapest model that was enough for steps like it.

    caution: how likely the chosen model is enough, 0..1. A label says which model was enough on one draw, so the
    likeliest label is right about half the time; the sweep over caution is the trade of money for right answers.
    `allocate` makes the same trade with the costs of each step at hand, and is the better of the two where they differ.
    """

    def __init__(self, caution: float = 0.9, l2: float = 1.0):
        if not 0 < caution < 1:
            raise ConfigError("caution", got=caution, expected="a probability between 0 and 1")
        self.caution, self.l2 = caution, l2

    def fit(self, features: Array, labels: Array, pool: Sequence[Candidate], costs: Array) -> Self:
        """features: [n, d] of steps. labels: [n] column of the model found enough. costs: [m] mean USD a step."""
        if np.shape(costs) != (len(pool),):
            raise ShapeError("costs", got=np.shape(costs), expected=(len(pool),))
        self.order_ = np.argsort(costs, kind="stable")
        rank = np.argsort(self.order_)[np.asarray(labels, dtype=int)]
        enough = (rank[:, None] <= np.arange(len(pool))[None]).astype(float)  # by price: the k cheapest were enough
        self.pool_ = [pool[int(j)] for j in self.order_]
        table = Outcomes(queries(features), self.pool_, {"quality": enough}, np.ones(enough.shape, dtype=bool))
        self.heads_ = Linear("quality", "logistic", l2=self.l2, rank=None).fit(table)
        return self

    def enough(self, features: Array) -> Array:
        """[n, m] P(the model, or a cheaper one, is enough), in order of price and never falling."""
        mean = self.heads_.predict(queries(features), self.pool_)["quality"].mean
        return np.maximum.accumulate(mean, axis=1)

    def predict(self, features: Array, caution: float | None = None) -> Array:
        """[n] column of the pool given to fit: the cheapest enough with probability `caution`, else the dearest."""
        return self.cheapest(self.enough(features), self.caution if caution is None else caution)

    def cheapest(self, chance: Array, caution: float) -> Array:
        """[n] column of the pool, from `enough` [n, m]."""
        reached = chance >= caution
        place = np.where(reached.any(axis=1), reached.argmax(axis=1), chance.shape[1] - 1)
        return np.asarray(self.order_[place])

    def allocate(self, chance: Array, cost: Array, trade_off: float) -> Array:
        """[n] column of the pool: the most of log P(enough) - trade_off * cost.

        chance: [n, m] from `enough`. cost: [n, m] USD, columns as the pool given to fit. trade_off: per USD. An answer
        is right if all its steps are, so its logarithm is a sum over steps, and each may be chosen by itself.
        """
        if np.shape(cost) != np.shape(chance):
            raise ShapeError("cost", got=np.shape(cost), expected=np.shape(chance))
        worth = np.log(np.maximum(chance, 1e-9)) - trade_off * np.asarray(cost)[:, self.order_]
        return np.asarray(self.order_[worth.argmax(axis=1)])


def queries(features: Array) -> list[Query]:
    """Steps as queries; features [n, d] become embeddings, which `Linear` scales to unit length, so a 1 is added."""
    features = np.asarray(features, dtype=np.float32)
    return [Query(f"step-{i}", embedding=np.append(row, np.float32(1.0))) for i, row in enumerate(features)]


def review_and_escalate(scores: Array, threshold: float) -> Array:
    """[n] bool: steps that a process reward model scores below the threshold, to be done again by a strong model."""
    return np.asarray(scores, dtype=float) < threshold
