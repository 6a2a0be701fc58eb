"""The one decision: constraints -> router -> policy -> decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import NoCandidateError
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
    allowed = np.ones((len(queries), len(pool)), dtype=bool)
    refused: list[dict[str, str]] = [{} for _ in queries]
    for constraint in constraints:
        passes = constraint(queries, pool)
        if not passes.all():
            for i, j in np.argwhere(allowed & ~passes):
                refused[i][pool[j].id] = name_of(constraint)
            allowed &= passes
    for query, row, why in zip(queries, allowed, refused, strict=True):
        if not row.any():
            raise NoCandidateError(query.id, why)
    estimates = router.predict(queries, pool)
    utility = objective.utility(estimates)
    chosen = policy.decide(estimates, objective, allowed, np.random.default_rng() if rng is None else rng)
    decisions = []
    for i, query in enumerate(queries):
        ids = tuple(pool[j].id for j in chosen.index[i])
        sure = 1.0 if chosen.propensity is None else float(chosen.propensity[i, 0])
        decisions.append(Decision(query.id, ids, sure, because(i, chosen.index[i, 0], utility, allowed, pool, sure)))
    return Weighing(decisions, estimates, utility, refused)


def name_of(constraint: Constraint) -> str:
    """The name a person reads when this constraint rules a candidate out."""
    return getattr(constraint, "__name__", type(constraint).__name__)


def because(i: int, j: int, utility: Array, allowed: Array, pool: Sequence[Candidate], sure: float) -> str:
    """One line: why row i chose column j."""
    others = allowed[i].copy()
    others[j] = False
    if not others.any():
        return "only candidate allowed"
    best = int(np.where(others, utility[i], -np.inf).argmax())
    lead = utility[i, j] - utility[i, best]
    word = "leads" if lead >= 0 else "explores behind"
    return f"{word} {pool[best].id} by {abs(lead):.3f} utility" + ("" if sure == 1.0 else f", chosen with p={sure:.3f}")
