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
SHARED = 10.0  # answers
EVERYONE = Candidate("*", kind="everyone")  # the line through all candidates' answers


class Length:
    """Estimate `output_tokens` by a ridge per candidate on the log, from the embedding and the log of prompt tokens.

    A mean of logs understates the mean, so each candidate's estimates are scaled to give the total it wrote. How long
    an answer gets depends on the question more than on who answers: a candidate's estimate is shrunk to a line through
    all candidates' answers, as if `SHARED` of its own had been that long; otherwise one that was tried once would look
    cheaper than one that never was. Before any outcome it is `typical` tokens, with a std as large. Nothing
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
        self.totals_ = np.zeros((3, 0))  # per column of line_: tokens written, tokens the line would have said, answers
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
        self.line_, self.totals_ = None, np.zeros((3, 0))
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
        pool = [*outcomes.pool, EVERYONE]
        y, seen = with_everyone(y, seen)
        said = np.exp(self.line_.predict(outcomes.queries, pool)[LOGARITHM].mean)
        self.totals_ = np.pad(self.totals_, ((0, 0), (0, len(self.line_.column_) - self.totals_.shape[1])))
        at = [self.line_.column_[candidate.id] for candidate in pool]
        sums = [np.where(seen, x, 0.0).sum(axis=0) for x in (y + 1, said, np.ones_like(y))]
        np.add.at(self.totals_.T, at, np.stack(sums, axis=1))

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.line_ is None:
            mean = np.full((len(queries), len(pool)), self.typical)
            std = mean
        else:
            log_mean, log_std = self.line_.predict(queries, [*pool, EVERYONE])[LOGARITHM]
            assert log_std is not None  # a ridge knows its doubt
            scale, count = self._scale(pool)
            each = np.exp(np.minimum(log_mean, 20.0)) * scale  # [n, m + 1]
            mean = (count[:-1] * each[:, :-1] + SHARED * each[:, -1:]) / (count[:-1] + SHARED)
            std = mean * log_std[:, :-1]
            mean = np.maximum(mean - 1.0, 0.0)
        return {"output_tokens": Estimate(*capped(mean, std, queries))}

    def _scales(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """What to multiply exp(mean log) by, [m + 1], and the answers seen, [m + 1]; the last is everyone.

        The factor is drawn to 1 as if ten typical answers had been foretold exactly.
        """
        assert self.line_ is not None
        wrote, said = self.totals_[:2] + 10.0 * self.typical
        at = [self.line_.column_.get(candidate.id, -1) for candidate in [*pool, EVERYONE]]
        factor, count = np.append(wrote / said, 1.0), np.append(self.totals_[2], 0.0)  # -1: never seen
        return factor[at], count[at]

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params = {"l2": self.l2, "rank": self.rank, "typical": self.typical, "line": self.line_}
        return params, {"totals": self.totals_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["l2"], params["rank"], params["typical"])
        router.line_ = params["line"]
        num_columns = 0 if router.line_ is None else len(router.line_.column_)
        router.totals_ = check_shape("totals", np.asarray(arrays["totals"], float), (3, num_columns))
        return router


def capped(mean: Array, std: Array, queries: Sequence[Query]) -> tuple[Array, Array]:
    """mean and std [n, m] of completion tokens within what each query allows; the std shrinks with the mean."""
    limits = [query.max_output for query in queries if query.max_output is not None]
    if not limits or not mean.size or min(limits) >= mean.max():
        return mean, std
    limit = np.array([np.inf if q.max_output is None else q.max_output for q in queries], float)[:, None]
    within = np.minimum(mean, limit)
    return within, std * (within / np.maximum(mean, 1e-9))


def with_everyone(y: Array, seen: Array) -> tuple[Array, Array]:
    """y and seen [n, m] with a last column: the mean of what was seen, where anything was."""
    count = seen.sum(axis=1, keepdims=True)
    mean = np.where(seen, y, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    return np.hstack([y, mean]), np.hstack([seen, count > 0])


def _logs(outcomes: Outcomes) -> Outcomes:
    """The table with log(1 + tokens) in place of every metric, and everyone as a last candidate."""
    y, seen = observed(outcomes, "output_tokens")
    logs, known = with_everyone(np.where(seen, np.log1p(y), 0.0), seen)
    return Outcomes(outcomes.queries, [*outcomes.pool, EVERYONE], {LOGARITHM: np.where(known, logs, np.nan)}, known)
