"""What an answer will cost, from list prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.protocols import OnlineRouter
from polyroute.routers.length import Length
from polyroute.routers.rows import PerPool, Unchanged, prompt_tokens
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query


class Price:
    """Estimate `cost` in USD: prompt tokens and expected completion tokens at the prices of the profiles.

    The completion comes from `length`, fitted here where the table has `output_tokens`; its std, at the price of a
    completion token, is the std of the cost. Works before `fit` and for any candidate. To learn cost from a table
    that records it, whatever the list prices: `Linear("cost", tokens="linear")`.
    """

    def __init__(self, length: OnlineRouter | None = None):
        self.length: OnlineRouter = Length() if length is None else length
        self._prices = PerPool(_prices)
        self._written = Unchanged(_written)

    def fit(self, outcomes: Outcomes) -> Self:
        if "output_tokens" in outcomes.values:
            self.length.fit(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        if "output_tokens" in outcomes.values:
            self.length.update(outcomes)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        prices = self._prices(pool)
        written, std = self._written(prices, *self.length.predict(queries, pool)["output_tokens"])
        return {"cost": Estimate(prompt_tokens(queries)[:, None] * prices[0] + written, std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        return {"length": self.length}, {}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        return cls(**params)


def _written(prices: Array, tokens: Array, std: Array | None) -> tuple[Array, Array | None]:
    """USD of completions, [n, m], and its std. prices: [2, m]."""
    return tokens * prices[1], None if std is None else std * prices[1]


def _prices(pool: Sequence[Candidate]) -> Array:
    """USD per token in and out, [2, m]."""
    per_million = [[c.profile.price_in for c in pool], [c.profile.price_out for c in pool]]
    return np.array(per_million, dtype=float) / 1e6
