"""What every router does first: queries to rows, candidates to columns, outcomes to masked numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from polyroute.errors import EmbeddingError, OutcomesError, ShapeError, UnknownCandidateError
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

T = TypeVar("T")

CHARACTERS_PER_TOKEN = 4.0  # English prose under byte-pair vocabularies; used where nobody counted
RANGE = {"quality": (0.0, 1.0), "cost": (0.0, math.inf), "latency": (0.0, math.inf), "output_tokens": (0.0, math.inf)}


def embeddings(queries: Sequence[Query], width: int | None = None) -> Array:
    """Stack the queries' embeddings, [n, d] float32. width: the d expected; None: whatever the first has.

    Raises: EmbeddingError naming the query whose embedding is missing or not finite; ShapeError for another width.
    """
    if not queries:
        return np.zeros((0, width or 0), dtype=np.float32)
    x: Array = None
    try:
        x = np.array([query.embedding for query in queries], dtype=np.float32)
    except (TypeError, ValueError):
        _complain(queries, width)
    if x.ndim != 2 or (width is not None and x.shape[1] != width) or not math.isfinite(np.vdot(x, x)):
        _complain(queries, width)
    return x


def _complain(queries: Sequence[Query], width: int | None) -> None:
    """Find the first query whose embedding does not fit and raise for it."""
    for query in queries:
        try:
            x = np.asarray(np.nan if query.embedding is None else query.embedding, dtype=np.float64)
        except (TypeError, ValueError):
            raise EmbeddingError(query.id, "not an array of numbers") from None
        if query.embedding is None:
            raise EmbeddingError(query.id, "none")
        width = x.size if width is None else width
        if x.shape != (width,):
            raise ShapeError(f"embedding of query {query.id!r}", got=x.shape, expected=(width,))
        if not np.isfinite(x).all() or np.abs(x).max(initial=0.0) > 1e15:
            bad = int(np.argmax(~(np.abs(x) <= 1e15)))
            raise EmbeddingError(query.id, f"{x[bad]} at position {bad}")
    raise EmbeddingError(queries[0].id, "numbers too large to square")


def unit_rows(x: Array) -> Array:
    """x [n, d] with rows of length 1; rows of zeros stay zeros."""
    length = np.sqrt(np.vecdot(x, x))
    return x / np.maximum(length, 1e-30)[:, None]


def prompt_tokens(queries: Sequence[Query]) -> Array:
    """Prompt tokens [n] float; where nobody counted, characters of the text divided by four."""
    return np.array(
        [len(q.text) / CHARACTERS_PER_TOKEN if q.num_tokens is None else q.num_tokens for q in queries], dtype=float
    )


def observed(outcomes: Outcomes, metric: str) -> tuple[Array, Array]:
    """A metric's values [n, m] float64 with 0 where not seen, and what was seen [n, m] bool.

    Raises: OutcomesError if the table lacks the metric or a value seen is infinite.
    """
    if metric not in outcomes.values:
        raise OutcomesError(
            f"values[{metric!r}]: expected a table with this metric, got {sorted(outcomes.values)}. "
            f"Add the column or give the router another metric."
        )
    values = np.asarray(outcomes.values[metric], dtype=float)
    seen = np.asarray(outcomes.observed, dtype=bool) & ~np.isnan(values)
    if np.isinf(values[seen]).any():
        i, j = np.argwhere(seen & np.isinf(values))[0]
        raise OutcomesError(
            f"values[{metric!r}]: expected finite numbers or NaN, got {values[i, j]} for query "
            f"{outcomes.queries[i].id!r} and candidate {outcomes.pool[j].id!r}."
        )
    return np.where(seen, values, 0.0), seen


class Columns(NamedTuple):
    """Where a pool's candidates stand in a fitted router."""

    index: Array  # [m] int, 0 for candidates never seen
    unseen: Array | None  # [m] bool; None: all were seen


def columns(column: Mapping[str, int], pool: Sequence[Candidate], *, prior: object = None) -> Columns:
    """Each candidate's column. column: candidate id -> column, of the candidates with outcomes only.

    Raises: UnknownCandidateError for candidates without a column, unless there is a prior to serve them.
    """
    missing = [candidate.id for candidate in pool if candidate.id not in column]
    if missing and prior is None:
        raise UnknownCandidateError(missing, known=column)
    index = np.array([column.get(candidate.id, 0) for candidate in pool], dtype=np.intp)
    unseen = np.array([candidate.id not in column for candidate in pool]) if missing else None
    return Columns(index, unseen)


def extend(column: dict[str, int], pool: Sequence[Candidate]) -> Array:
    """Give candidates never met the next columns, in place; returns each candidate's column [m] int."""
    for candidate in pool:
        column.setdefault(candidate.id, len(column))
    return np.array([column[candidate.id] for candidate in pool], dtype=np.intp)


class PerPool(Generic[T]):
    """Keeps what was worked out for the pools asked for last, since a decision is on the hot path.

    Pools are compared candidate by candidate (identical objects first, which is quick), so a list changed in place
    or a profile replaced is noticed. Call `clear` when the router learns.
    """

    def __init__(self, work_out: Callable[[Sequence[Candidate]], T], keep: int = 4):
        self.work_out, self.keep = work_out, keep
        self.kept: list[tuple[tuple[Candidate, ...], T]] = []

    def __call__(self, pool: Sequence[Candidate]) -> T:
        asked = tuple(pool)
        for known, value in self.kept:
            if known == asked:
                return value
        value = self.work_out(asked)
        self.kept = [(asked, value), *self.kept[: self.keep - 1]]
        return value

    def clear(self) -> None:
        self.kept = []


class Unchanged(Generic[T]):
    """Keeps the last result while the very same objects are given: what no query changes is worked out once.

    The objects must not be changed in place.
    """

    def __init__(self, work_out: Callable[..., T]):
        self.work_out = work_out
        self.last: tuple[tuple[object, ...], T] | None = None

    def __call__(self, *given: object) -> T:
        last = self.last
        if last is not None and all(map(is_, given, last[0])):
            return last[1]
        result = self.work_out(*given)
        self.last = given, result
        return result


def nothing(metric: str, num_queries: int, num_candidates: int) -> Estimates:
    """The estimates for no queries or an empty pool: [n, m] with n or m of 0."""
    shape = (num_queries, num_candidates)
    return {metric: Estimate(np.zeros(shape), np.zeros(shape))}


def within(metric: str, mean: Array) -> Array:
    """Means clipped to what the metric can be: quality 0..1; cost, latency and tokens 0 or more."""
    low, high = RANGE.get(metric, (-math.inf, math.inf))
    return np.minimum(np.maximum(mean, low), high)


def check_shape(name: str, array: Array, expected: tuple[int | None, ...]) -> Array:
    """The array as it is. None stands for any length. Raises: ShapeError."""
    shape = np.shape(array)
    if len(shape) != len(expected) or any(want not in (None, got) for want, got in zip(expected, shape, strict=True)):
        raise ShapeError(name, got=shape, expected=tuple("any" if want is None else want for want in expected))
    return array
