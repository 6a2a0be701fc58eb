"""System 106, Online Matching (arXiv:2307.15893): clusters of requests, a graph to candidates, learned online.

A request belongs softly to its nearest clusters; each edge (cluster, candidate) keeps two counters (Diag-LinUCB). They
are sums, so replicas learn apart and merge, outcomes may come late, and newcomers join by an edge. With a large
catalogue the graph keeps only the candidates whose own embedding is near the cluster. What differs from the paper:
k-means on the featuriser's embeddings stands for the two-tower model, and rewards are centred.
Parts: routers/context, routers/diagonal, policies/explore, offline/online.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np

from polyroute.errors import ConfigError, NotFittedError
from polyroute.routers.context import Contexts, Contextual, memberships
from polyroute.routers.diagonal import Diagonal
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Array, Candidate, Query

KAPPA = 1.0  # chosen with 32 clusters of which 3 count by streams of seeds 100 and 101


def online_matching(
    queries: Sequence[Query], *, num_clusters: int = 32, nearest: int = 3, kappa: float = KAPPA
) -> Contextual:
    """The router before its first outcome; serve it under policies.explore UCB(1.0). queries: what to cluster."""
    contexts = Contexts(num_clusters, (), tasks=False, nearest=nearest, constant=False).fit(queries)
    return Contextual(Diagonal("quality", kappa=kappa), contexts)


def merged(replicas: Iterable[Contextual], base: Contextual) -> Contextual:
    """One router that knows what all replicas learned since they were copies of `base`; none of them is changed."""
    whole = deepcopy(base)
    for replica in replicas:
        counters, held = replica.router, whole.router
        if (
            not isinstance(counters, Diagonal)
            or not isinstance(held, Diagonal)
            or not isinstance(base.router, Diagonal)
        ):
            raise ConfigError("replicas", got=type(counters).__name__, expected="routers made by online_matching")
        held.merge(counters, base.router)
    return whole


class Edges:
    """The sparse graph as a constraint: a query may go to candidates near one of its clusters.

    top_w: candidates kept a cluster, those whose profile's embedding is nearest to its centre. Of the same featuriser
    as the queries' embeddings. A candidate without an embedding is a newcomer nobody has placed: allowed everywhere.
    """

    __name__ = "edges of the cluster"

    def __init__(self, contexts: Contexts, top_w: int = 20):
        if top_w < 1:
            raise ConfigError("top_w", got=top_w, expected="a number of candidates, 1 or more")
        if not contexts.fitted:
            raise NotFittedError(contexts)
        self.contexts, self.top_w = contexts, top_w

    def graph(self, pool: Sequence[Candidate]) -> Array:
        """Which cluster may go to whom, [c, m] bool."""
        placed = np.array([c.profile.embedding is not None for c in pool], dtype=bool)
        allowed = np.ones((len(self.contexts.centres_), len(pool)), dtype=bool)
        if placed.sum() > self.top_w:
            x = unit_rows(np.array([c.profile.embedding for c in pool if c.profile.embedding is not None], float))
            near = np.argsort(-(self.contexts.centres_ @ x.T), axis=1, kind="stable")[:, : self.top_w]
            kept = np.zeros((len(allowed), len(x)), dtype=bool)
            np.put_along_axis(kept, near, True, axis=1)
            allowed[:, placed] = kept
        return allowed

    def __call__(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        x = unit_rows(embeddings(queries, self.contexts.centres_.shape[1]))
        mine = memberships(x @ self.contexts.centres_.T, self.contexts.nearest) > 0  # [n, c]
        reached: Array = mine.astype(int) @ self.graph(pool).astype(int) > 0
        return reached
