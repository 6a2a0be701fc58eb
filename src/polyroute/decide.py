"""The one decision: constraints -> router -> policy -> decisions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from polyroute.errors import NoCandidateError, SelectionError, ShapeError
from polyroute.protocols import Constraint, Policy, Router
from polyroute.types import Array, Candidate, Decision, Estimates, Objective, Query, Rng


class Weighing(NamedTuple):
    """A decision with everything that was known when it was made."""

    decisions: list[Decision]  # n
    estimates: Estimates  # metric -> Estimate [n, m]
    utility: Array  # [n, m]
    refused: list[dict[str, str]]  # n times: candidate id -> the constraint that ruled it out


def decide(
    queries: Sequence[Query],
    pool: Sequence[Candidate],
    router: Router,
    policy: Policy,
    objective: Objective,
    constraints: Sequence[Constraint] = (),
    rng: Rng | None = None,
) -> list[Decision]:
    """Choose a candidate for each query.

    Constraints rule out first; the router estimates what the rest would yield; the policy weighs and chooses.
    rng: the policy's randomness; None: this process's own, which no seed repeats.
    Raises: NoCandidateError naming the constraint that ruled out each candidate.
    """
    return weigh(queries, pool, router, policy, objective, constraints, rng).decisions


def weigh(
    queries: Sequence[Query],
    pool: Sequence[Candidate],
    router: Router,
    policy: Policy,
    objective: Objective,
    constraints: Sequence[Constraint] = (),
    rng: Rng | None = None,
    estimates: Estimates | None = None,
) -> Weighing:
    """`decide`, with the estimates and refusals kept, for explanations and logs.

    estimates: what the router said of these queries and this pool, where it was asked before; None: it is asked now.
    """
    allowed, refused = permit(queries, pool, constraints)
    if estimates is None:
        estimates = router.predict(queries, pool)
    utility = objective.utility(estimates)
    if len(queries) == 0:
        return Weighing([], estimates, utility, refused)
    chosen = policy.decide(estimates, objective, allowed, own_rng(os.getpid()) if rng is None else rng)
    odds = [None] * len(queries) if chosen.propensity is None else chosen.propensity.tolist()
    rows = zip(queries, chosen.index.tolist(), odds, utility.tolist(), allowed.tolist(), strict=True)
    decisions = [decided(query, pool, policy, *row) for query, *row in rows]
    return Weighing(decisions, estimates, utility, refused)


@lru_cache(maxsize=1)
def own_rng(process: int) -> Rng:
    """Randomness for callers who bring none, kept: to make a generator takes as long as to decide.

    process: a forked process has its own.
    """
    return np.random.default_rng()


def permit(
    queries: Sequence[Query], pool: Sequence[Candidate], constraints: Sequence[Constraint]
) -> tuple[Array, list[dict[str, str]]]:
    """Who may serve: allowed [n, m] bool, and for each query candidate id -> the first constraint against it.

    Raises: NoCandidateError if that leaves nobody for a query; ShapeError if a constraint answers in another shape.
    """
    allowed = np.empty((len(queries), len(pool)), dtype=bool)
    allowed.fill(True)  # np.ones takes several times as long for one row
    refused: list[dict[str, str]] = [{} for _ in queries]
    for constraint in constraints:
        passes = constraint(queries, pool)
        if passes.shape != allowed.shape:
            raise ShapeError(f"constraint {name_of(constraint)}", got=passes.shape, expected=allowed.shape)
        if not passes.all():
            for i, j in zip(*np.nonzero(allowed & ~passes), strict=True):
                refused[i][pool[j].id] = name_of(constraint)
            allowed &= passes
    for query, row, why in zip(queries, allowed.tolist(), refused, strict=True):
        if not any(row):
            raise NoCandidateError(query.id, why, asked_of(query))
    return allowed, refused


def asked_of(query: Query) -> str:
    """What a query asks of whoever serves it, as a sentence; empty where it says nothing."""
    asks = [f"offer {', '.join(sorted(query.needs))}"] if query.needs else []
    if query.num_tokens is not None:
        asks.append(f"read about {query.num_tokens:,} tokens")
    if query.max_output is not None:
        asks.append(f"write up to {query.max_output:,}")
    return f"It must {' and '.join(asks)}." if asks else ""


def decided(
    query: Query,
    pool: Sequence[Candidate],
    policy: Policy,
    index: list[int],
    odds: list[float] | None,
    utility: list[float],
    may: list[bool],
) -> Decision:
    """One row of a selection with names and a reason, from plain numbers: an array call costs more than a small row.

    index, odds: [k] chosen columns and their propensities. utility, may: [m].
    Raises: SelectionError if the policy chose a candidate that is not allowed.
    """
    columns = [j for j in index if j >= 0] or index
    for j in columns:
        if not 0 <= j < len(pool) or not may[j]:
            names = [candidate.id for candidate, free in zip(pool, may, strict=True) if free]
            raise SelectionError(type(policy).__name__, query.id, got=j, allowed=names)
    sure = 1.0 if odds is None else math.prod(odds[: len(columns)])
    lead, rival = lead_of(columns[0], utility, may)
    return Decision(query.id, tuple([pool[j].id for j in columns]), sure, because(lead, pool[rival].id, sure))


def lead_of(chosen: int, utility: list[float], may: list[bool]) -> tuple[float, int]:
    """By how much a chosen column beats the best other allowed one, and which that is. No other: inf."""
    best, rival = -math.inf, 0
    for j, value in enumerate(utility):
        if value > best and may[j] and j != chosen:
            best, rival = value, j
    return utility[chosen] - best, rival


def because(lead: float, rival: str, sure: float) -> str:
    """One line for a person: why this candidate. sure: its propensity."""
    if lead == math.inf:
        return "only candidate allowed"
    if lead >= 0:
        reason = f"leads {rival} by {lead:.3f} utility"
    elif sure < 1.0:
        reason = f"explores behind {rival} by {-lead:.3f} utility"
    else:
        reason = f"held back from {rival} by price, deadline or doubt, {-lead:.3f} utility behind"
    return reason if sure == 1.0 else f"{reason}, chosen with p={sure:.3f}"


def name_of(constraint: Constraint) -> str:
    """The name a person reads when this constraint rules a candidate out."""
    return getattr(constraint, "__name__", type(constraint).__name__)
