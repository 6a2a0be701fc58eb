"""System 81, guarded query routing (GQR-Bench, arXiv:2505.14524): to one of K domains, or to none of them.

Domains are candidates, and a query's outcome is 1 at its own domain and 0 elsewhere; a router of novelty learns how
foreign a query is to each, and the least foreign one serves it, if it is not beyond the edge. The edge comes from the
share of own queries one is willing to turn away; foreign queries are never needed, not even to set it.
Parts: routers/novelty, constraints.familiar, decide.permit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.constraints import familiar
from polyroute.errors import ShapeError
from polyroute.protocols import Constraint
from polyroute.routers.novelty import Novelty
from polyroute.types import Array, Candidate, Outcomes, Query

REJECTED = -1


def domain_outcomes(queries: Sequence[Query], domains: Sequence[str], groups: Sequence[str] | None = None) -> Outcomes:
    """Labelled queries as outcomes: quality 1 at the query's own domain, 0 elsewhere. Candidates are sorted by name."""
    if len(domains) != len(queries):
        raise ShapeError("domains", got=(len(domains),), expected=(len(queries),))
    names, own = np.unique(np.asarray(domains, dtype=str), return_inverse=True)
    quality = (own[:, None] == np.arange(len(names))).astype(float)
    labels = {} if groups is None else {"group": np.asarray(groups)}
    pool = [Candidate(str(name), kind="domain") for name in names]
    return Outcomes(queries, pool, {"quality": quality}, np.ones(quality.shape, dtype=bool), labels)


class GuardedRouter:
    """Sends each query to a domain or rejects it. detectors, reject: see routers/novelty.py.

    also: further routers of novelty, fitted here too; a query is rejected where any of them finds it foreign.
    """

    def __init__(self, novelty: Novelty | None = None, also: Sequence[Novelty] = ()):
        self.novelty, self.also = Novelty() if novelty is None else novelty, list(also)

    def fit(self, queries: Sequence[Query], domains: Sequence[str], groups: Sequence[str] | None = None) -> Self:
        outcomes = domain_outcomes(queries, domains, groups)
        self.pool_ = list(outcomes.pool)
        for router in (self.novelty, *self.also):
            router.fit(outcomes)
        return self

    def constraints(self) -> list[Constraint]:
        """For decide(), beside any other constraint."""
        return [familiar(router) for router in (self.novelty, *self.also)]

    def predict(self, queries: Sequence[Query]) -> Array:
        """[n] int: the place of the least foreign domain in `pool_`, or REJECTED."""
        novelty = self.novelty.predict(queries, self.pool_)["novelty"].mean
        allowed = novelty <= 1
        for router in self.also:
            allowed = allowed & (router.predict(queries, self.pool_)["novelty"].mean <= 1)
        choice = np.where(allowed, novelty, np.inf).argmin(axis=1)
        return np.where(allowed.any(axis=1), choice, REJECTED)


def gqr_score(truth: Array, predicted: Array, foreign: Mapping[str, Array]) -> dict[str, Any]:
    """The benchmark's figures. truth, predicted: [n] domains of own queries; foreign: set -> its predictions.

    gqr: harmonic mean of the accuracy on own queries, a rejected one counting as wrong, and of the mean over foreign
    sets, each of equal weight whatever its size, of the share rejected.
    """
    own = float(np.mean(np.asarray(truth) == np.asarray(predicted)))
    rejected = {name: float(np.mean(np.asarray(some) == REJECTED)) for name, some in foreign.items()}
    mean = float(np.mean(list(rejected.values())))
    return {"own": own, "foreign": mean, "gqr": 2 * own * mean / max(own + mean, 1e-12), "rejected": rejected}
