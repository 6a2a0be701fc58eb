"""Who may serve a query at all: functions of queries and pool that return [n, m] bool, True where allowed.

A constraint's `__name__` is what a person reads when it rules a candidate out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from polyroute.errors import ConfigError
from polyroute.protocols import Constraint, Router
from polyroute.types import Array, Candidate, Query


def offers_needs(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
    """A candidate must offer every capability the query needs."""
    if not any(query.needs for query in queries):
        return np.ones((len(queries), len(pool)), dtype=bool)
    offered = [[query.needs <= candidate.profile.offers for candidate in pool] for query in queries]
    return np.array(offered, dtype=bool).reshape(len(queries), len(pool))


def fits_context(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
    """Prompt and allowed completion together must fit the candidate's context.

    What is not known does not count against anyone: a prompt not counted or a completion without a limit is taken
    as 0 tokens, and a candidate whose context is not known passes.
    """
    room = [np.inf if c.profile.context is None else c.profile.context for c in pool]
    tokens = [(query.num_tokens or 0) + (query.max_output or 0) for query in queries]
    fits = [[count <= most for most in room] for count in tokens]
    return np.array(fits, dtype=bool).reshape(len(queries), len(pool))


def in_region(regions: Collection[str]) -> Constraint:
    """Data may go to these regions only. A candidate whose region is not known is ruled out."""
    _refuse_text("regions", regions)
    return _of_candidate(f"in_region({', '.join(sorted(regions))})", lambda c: c.profile.region in regions)


def healthy(down: Collection[str]) -> Constraint:
    """Candidates whose id is in `down` are ruled out. A set that changes while serving is read at each call."""
    _refuse_text("down", down)
    return _of_candidate("healthy", lambda c: c.id not in down)


def only(ids: Collection[str]) -> Constraint:
    """These candidate ids and no others."""
    _refuse_text("ids", ids)
    return _of_candidate("only", lambda c: c.id in ids)


def familiar(router: Router, most: float = 1.0) -> Constraint:
    """Candidates to whom a query is foreign are ruled out. router: estimates `novelty`, as routers/novelty.py does.

    most: the largest novelty that passes; 1 is the edge the router was fitted to. A query foreign to everyone leaves
    nobody: decide() raises NoCandidateError, which is the refusal.
    """

    def constraint(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        return np.asarray(router.predict(queries, pool)["novelty"].mean <= most)

    constraint.__name__ = constraint.__qualname__ = "familiar"
    return constraint


def where(name: str, flagged: Callable[[Query], bool], ids: Collection[str]) -> Constraint:
    """Queries that a guard flags may go to these candidates only; all others anywhere. name: what a person reads.

    flagged: asked once for each query, as in `lambda query: bool(find_pii(query.text))`. No ids: nobody may serve them.
    """
    _refuse_text("ids", ids)

    def constraint(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        among = np.array([candidate.id in ids for candidate in pool], dtype=bool)
        marked = np.array([flagged(query) for query in queries], dtype=bool)
        return among[None] | ~marked[:, None]

    constraint.__name__ = constraint.__qualname__ = name
    return constraint


def _refuse_text(argument: str, values: Collection[str]) -> None:
    # `"eu" in "europe"` is true of texts, so a forgotten pair of braces would let candidates through
    if isinstance(values, str):
        raise ConfigError(argument, got=values, expected="a set of names", hint=f"Write {{{values!r}}}.")


def _of_candidate(name: str, passes: Callable[[Candidate], bool]) -> Constraint:
    """A constraint that asks about the candidate alone, the same for every query."""

    def constraint(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        return np.array([[passes(candidate) for candidate in pool]], dtype=bool).repeat(len(queries), axis=0)

    constraint.__name__ = constraint.__qualname__ = name
    return constraint
