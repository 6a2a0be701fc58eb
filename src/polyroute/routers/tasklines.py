"""What an answer costs: for each task and candidate a line on prompt tokens.

Letters: n queries, m candidates, c tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from polyroute.routers.length import TYPICAL_TOKENS
from polyroute.routers.rows import observed, prompt_tokens
from polyroute.types import Array, Candidate, Estimate, Outcomes

KAPPA = 5.0  # queries that the line through all tasks is worth
ALIKE = 1.0  # answers by which base and slope of a newcomer are taken to rise alike
SHORT = 50.0  # tokens by which a typical prompt is taken to vary at least


class Lines(NamedTuple):
    """Cost in USD: base + slope * tokens, each task and candidate, in the candidate's column."""

    line: Array  # [2, c, m] base and slope
    doubt: Array  # [c, m] variance of the base
    written: Array  # [c] completion tokens of a typical answer
    tried: Array  # [2, m] USD paid, and expected by the line; of those without, since first seen, by a typical one
    fitted: Array  # [m] bool, has a line of its own

    @property
    def any(self) -> bool:
        return bool(self.fitted.any())

    def widened(self, gained: int) -> Self:
        """With columns for new candidates."""
        return self._replace(
            line=np.pad(self.line, ((0, 0), (0, 0), (0, gained))),
            doubt=np.pad(self.doubt, ((0, 0), (0, gained))),
            tried=np.pad(self.tried, ((0, 0), (0, gained))),
            fitted=np.pad(self.fitted, (0, gained)),
        )

    def updated(self, outcomes: Outcomes, share: Array, at: Array) -> Self:
        """With what more answers cost: lines rise or fall as a whole. share: [n, c]. at: [m] columns."""
        if "cost" not in outcomes.values or not self.any:
            return self
        y, seen = observed(outcomes, "cost")
        typical = self.line[:, :, self.fitted].mean(axis=2, keepdims=True)
        line = np.where(self.fitted[at], self.line[:, :, at], typical)
        expected = share @ line[0] + prompt_tokens(outcomes.queries)[:, None] * (share @ line[1])
        tried = self.tried.copy()
        tried[:, at] += np.stack([np.where(seen, y, 0.0).sum(axis=0), np.where(seen, expected, 0.0).sum(axis=0)])
        return self._replace(tried=tried)

    def table(self, at: Array, pool: Sequence[Candidate]) -> Array:
        """[c, 3m] for `read`: base, slope, and base squared plus doubt, each for the pool.

        A candidate with answers but no line costs as much more than a typical one as those did; one without answers
        costs what its list prices say.
        """
        c = len(self.written)
        line, doubt = np.zeros((2, c, len(pool))), np.zeros((c, len(pool)))
        typical = self.line[:, :, self.fitted].mean(axis=2)
        for j, (column, candidate) in enumerate(zip(at, pool, strict=True)):
            paid, expected = self.tried[:, column] if column < len(self.fitted) else np.zeros(2)
            if column < len(self.fitted) and self.fitted[column]:
                line[:, :, j] = self.line[:, :, column] * (paid / expected if expected > 0 else 1.0)
                doubt[:, j] = self.doubt[:, column]
                continue
            profile = candidate.profile
            if expected > 0:
                line[:, :, j] = typical * (paid / expected)
            else:
                line[0, :, j], line[1, :, j] = self.written * profile.price_out / 1e6, profile.price_in / 1e6
            doubt[:, j] = line[0, :, j] ** 2
        return np.hstack([line[0], line[1], line[0] ** 2 + doubt])

    def of_few(self, task: Array, tokens: Array, paid: Array) -> Array:
        """Base and slope [2, c] of a newcomer: typical ones, each by a factor, that meet what a few answers cost.

        task: [a] int. tokens: [a] of the prompts. paid: [a] USD. The two factors differ as prices in and out do.
        """
        typical = self.line[:, :, self.fitted].mean(axis=2)
        base, slope = np.maximum(typical[0][task], 0.0), typical[1][task] * tokens
        usual = np.maximum(base + slope, 1e-12)
        part = np.stack([base, slope]) / usual  # [2, a]
        ratio = paid.sum() / usual.sum()
        factor = np.linalg.solve(part @ part.T + ALIKE * np.eye(2), part @ (paid / usual) + ALIKE * ratio)
        factor = np.maximum(factor, 0.0)
        expected = float(factor[0] * base.sum() + factor[1] * slope.sum())
        return typical * (factor * (paid.sum() / expected if expected > 0 else 1.0))[:, None]

    def read(self, share: Array, tokens: Array, table: Array) -> Estimate:
        """Expected cost [n, m] of queries. share: [n, c]. tokens: [n]. table: from `table`."""
        found = share @ table
        m = table.shape[1] // 3
        base, slope, square = found[:, :m], found[:, m : 2 * m], found[:, 2 * m :]
        variance = np.maximum(square - base * base, 0.0)
        return Estimate(np.maximum(base + tokens[:, None] * slope, 0.0), np.sqrt(variance))


def learn_lines(outcomes: Outcomes, member: Array, num_tasks: int) -> Lines:
    """Lines by least squares for each task, drawn to the line through all tasks. member: [n] task of each query.

    A slope is never negative. Without costs in the table there are no lines.
    """
    m = len(outcomes.pool)
    written = np.full(num_tasks, TYPICAL_TOKENS)
    if "output_tokens" in outcomes.values:
        y, seen = observed(outcomes, "output_tokens")
        total, count = (np.bincount(member, v.sum(axis=1), num_tasks) for v in (y, seen))
        written = (total + KAPPA * TYPICAL_TOKENS) / (count + KAPPA)
    lines = Lines(np.zeros((2, num_tasks, m)), np.zeros((num_tasks, m)), written, np.zeros((2, m)), np.zeros(m, bool))
    if "cost" not in outcomes.values:
        return lines
    y, seen = observed(outcomes, "cost")
    tokens = prompt_tokens(outcomes.queries)
    for j in range(m):
        rows = seen[:, j]
        if rows.any():
            lines.line[:, :, j], lines.doubt[:, j] = _lines(y[rows, j], tokens[rows], member[rows], num_tasks)
            lines.fitted[j], lines.tried[:, j] = True, y[rows, j].sum()
    return lines


def _lines(y: Array, t: Array, member: Array, num_tasks: int) -> tuple[Array, Array]:
    """Base and slope [2, c] of each task, and the variance of the base [c]."""
    spread = max(float(t.var()), SHORT**2)
    centre, level = t.mean(), y.mean()
    slope = max(float(((t - centre) * (y - level)).sum()) / (len(y) * spread), 0.0)
    share = np.eye(num_tasks)[member]
    count = share.sum(axis=0)
    weight = count + KAPPA
    left = y - (level + slope * (t - centre))
    mean_t = (share.T @ t + KAPPA * centre) / weight
    mean_left = share.T @ left / weight
    away = t - mean_t[member]
    extra = share.T @ (away * (left - mean_left[member])) / (share.T @ away**2 + KAPPA * spread)
    own = np.maximum(slope + extra, 0.0)
    base = level + slope * (mean_t - centre) + mean_left - own * mean_t
    scatter = share.T @ (y - base[member] - own[member] * t) ** 2
    variance = (scatter + KAPPA * (float(left.var()) + level**2 / len(y))) / weight**2
    return np.stack([base, own]), variance
