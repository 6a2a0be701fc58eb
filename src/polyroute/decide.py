"""The one decision: constraints -> router -> policy -> decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import NoCandidateError, SelectionError, ShapeError
from polyroute.protocols import Constraint, Policy, Router
from polyroute.types import Array, Candidate, Decision, Estimates, Objective, Query, Rng, Selection


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
    rng: the policy's randomness; None: a fresh one that no seed repeats.
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
) -> Weighing:
    """`decide`, with the estimates and refusals kept, for explanations and logs."""
    allowed, refused = permit(queries, pool, constraints)
    estimates = router.predict(queries, pool)
    utility = objective.utility(estimates)
    if len(queries) == 0:
        return Weighing([], estimates, utility, refused)
    chosen = policy.decide(estimates, objective, allowed, np.random.default_rng() if rng is None else rng)
    names, propensity = named(chosen, queries, pool, allowed, policy)
    lead, rival = leads(chosen.index[:, 0], utility, allowed)
    reasons = [because(a, pool[j].id, p) for a, j, p in zip(lead, rival, propensity, strict=True)]
    ids = [query.id for query in queries]
    decisions = [Decision(*row) for row in zip(ids, names, propensity, reasons, strict=True)]
    return Weighing(decisions, estimates, utility, refused)


def permit(
    queries: Sequence[Query], pool: Sequence[Candidate], constraints: Sequence[Constraint]
) -> tuple[Array, list[dict[str, str]]]:
    """Who may serve: allowed [n, m] bool, and for each query candidate id -> the first constraint against it.

    Raises: NoCandidateError if that leaves nobody for a query; ShapeError if a constraint answers in another shape.
    """
    allowed = np.ones((len(queries), len(pool)), dtype=bool)
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
            raise NoCandidateError(query.id, why)
    return allowed, refused


def named(
    chosen: Selection, queries: Sequence[Query], pool: Sequence[Candidate], allowed: Array, policy: Policy
) -> tuple[list[tuple[str, ...]], list[float]]:
    """Candidate ids and propensity of each row. Raises: SelectionError if the policy chose one not allowed."""
    ids: list[tuple[str, ...]] = []
    may: list[list[bool]] = allowed.tolist()
    index: list[list[int]] = chosen.index.tolist()
    for i, columns in enumerate(index):
        row = [j for j in columns if j >= 0] or columns
        for j in row:
            if not 0 <= j < len(pool) or not may[i][j]:
                names = [candidate.id for candidate, free in zip(pool, may[i], strict=True) if free]
                raise SelectionError(type(policy).__name__, queries[i].id, got=j, allowed=names)
        ids.append(tuple(pool[j].id for j in row))
    if chosen.propensity is None:
        return ids, [1.0] * len(ids)
    return ids, [math.prod(row[: len(some)]) for row, some in zip(chosen.propensity.tolist(), ids, strict=True)]


def leads(chosen: Array, utility: Array, allowed: Array) -> tuple[list[float], list[int]]:
    """By how much each chosen column [n] beats the best other allowed one, and which that is. No other: inf."""
    lead, rival = [], []
    for j, row, may in zip(chosen.tolist(), utility.tolist(), allowed.tolist(), strict=True):
        best, other = -math.inf, 0  # plain numbers: on one small row an array call costs more than the row
        for k, value in enumerate(row):
            if value > best and may[k] and k != j:
                best, other = value, k
        lead.append(row[j] - best)
        rival.append(other)
    return lead, rival


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
