"""How many tokens a candidate will write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError
from polyroute.routers.constant import Constant
from polyroute.routers.linear import Linear
from polyroute.routers.rows import PerPool, check_shape, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

TYPICAL_TOKENS = 200.0  # of an answer nobody measured: the completion of the reference request
LOGARITHM = "log_output_tokens"


class Length:
    """Estimate `output_tokens` by a ridge per candidate on the log, from the embedding and the log of prompt tokens.

    A mean of logs understates the mean, so each candidate's estimates are scaled to give the total it wrote. Candidates
    without outcomes, and every candidate before `fit`, are estimated at `typical` tokens, with a std as large. Nothing
    is estimated above what the query allows (`max_output`). The std is the doubt about the mean. `update` before `fit`
    starts lines on prompt tokens alone, since no direction of the embedding can be told from a few answers.
    It can only learn what the table holds: some public tables fill this column with assumed constants, and a claim
    about length, latency or cost that rests on those says nothing.
    """

    def __init__(self, l2: float = 10.0, rank: int | None = 64, typical: float = TYPICAL_TOKENS):
        if not typical > 0:
            raise ConfigError("typical", got=typical, expected="a number of tokens above 0")
        self.l2, self.rank, self.typical = l2, rank, typical
        self.line_: Linear | None = None  # on the log scale
        self.totals_ = np.zeros((2, 0))  # per column of line_: tokens written, tokens the line would have said
        self._scale = PerPool(self._scales)

    def fit(self, outcomes: Outcomes) -> Self:
        self._start(outcomes, self.rank)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Learn from more answers."""
        if self.line_ is None:
            self._start(outcomes, 0)
            return
        self.line_.update(_logs(outcomes))
        self._total(outcomes)

    def _start(self, outcomes: Outcomes, rank: int | None) -> None:
        logs = _logs(outcomes)
        self.line_, self.totals_ = None, np.zeros((2, 0))
        if logs.observed.any():
            before = Constant(LOGARITHM, float(np.log1p(self.typical)), 1.0)
            self.line_ = Linear(LOGARITHM, "ridge", self.l2, rank, tokens="log", prior=before).fit(logs)
            self._total(outcomes)

    def _total(self, outcomes: Outcomes) -> None:
        assert self.line_ is not None
        self._scale.clear()
        y, seen = observed(outcomes, "output_tokens")
        if not y.size:
            return
        said = np.exp(self.line_.predict(outcomes.queries, outcomes.pool)[LOGARITHM].mean)
        self.totals_ = np.pad(self.totals_, ((0, 0), (0, len(self.line_.column_) - self.totals_.shape[1])))
        at = [self.line_.column_[candidate.id] for candidate in outcomes.pool]
        np.add.at(self.totals_.T, at, np.stack([np.where(seen, x, 0.0).sum(axis=0) for x in (y + 1, said)], axis=1))

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.line_ is None:
            mean = np.full((len(queries), len(pool)), self.typical)
            std = mean
        else:
            log_mean, log_std = self.line_.predict(queries, pool)[LOGARITHM]
            mean = np.exp(np.minimum(log_mean, 20.0)) * self._scale(pool)
            std = mean * log_std
            mean = np.maximum(mean - 1.0, 0.0)
        if any(query.max_output is not None for query in queries):
            limit = np.array([np.inf if q.max_output is None else q.max_output for q in queries], float)[:, None]
            capped = np.minimum(mean, limit)
            mean, std = capped, std * (capped / np.maximum(mean, 1e-9))
        return {"output_tokens": Estimate(mean, std)}

    def _scales(self, pool: Sequence[Candidate]) -> Array:
        """What to multiply exp(mean log) by, [m]; drawn to 1 as if ten typical answers had been foretold exactly."""
        assert self.line_ is not None
        wrote, said = self.totals_ + 10.0 * self.typical
        column = self.line_.column_
        return np.array([wrote[column[c.id]] / said[column[c.id]] if c.id in column else 1.0 for c in pool])

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"l2": self.l2, "rank": self.rank, "typical": self.typical, "line": self.line_}
        return params, {"totals": self.totals_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["l2"], params["rank"], params["typical"])
        router.line_ = params["line"]
        num_columns = 0 if router.line_ is None else len(router.line_.column_)
        router.totals_ = check_shape("totals", np.asarray(arrays["totals"], float), (2, num_columns))
        return router


def _logs(outcomes: Outcomes) -> Outcomes:
    """The table with log(1 + tokens) in place of every metric."""
    y, seen = observed(outcomes, "output_tokens")
    return Outcomes(outcomes.queries, outcomes.pool, {LOGARITHM: np.where(seen, np.log1p(y), np.nan)}, seen)
