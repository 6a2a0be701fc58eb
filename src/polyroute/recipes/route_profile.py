"""System 49, RouteProfile: the profile of a model is data that any router consumes, and four choices build it.

Organisation (flat or graph), representation (text or vector), depth (0 or more rounds), learning (none or trained).
Three consumers: the cosine router, a two-tower network, a graph network. Parts: routers/profiles, routers/cosine,
nn/encoders:TwoTower, nn/encoders:GraphEncoder, policies/greedy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polyroute.errors import UnknownNameError
from polyroute.protocols import Featuriser, Router
from polyroute.routers.cosine import Cosine
from polyroute.routers.profiles import Profiles
from polyroute.types import Array, Outcomes

CONSUMERS = ("cosine", "two-tower", "graph")


def route_profile(
    consumer: str = "cosine",
    *,
    kind: str = "graph",
    depth: int = 0,
    texts: Mapping[str, str] | None = None,
    featuriser: Featuriser | None = None,
) -> Router:
    """A router that consumes profiles of this kind and depth.

    texts: candidate id -> description; with `featuriser` (the one the queries were embedded with) they are embedded
    for kind "flat". Networks need polyroute[nn] and read the same profiles.
    """
    texts = dict(texts or {})
    vectors = embedded(texts, featuriser) if featuriser is not None else None
    if consumer == "cosine":
        return Cosine(Profiles(kind, depth), texts, vectors)
    if consumer == "two-tower":
        from polyroute.nn.encoders import TwoTower

        towers: Router = TwoTower(Profiles(kind, depth), texts, vectors)
        return towers
    if consumer == "graph":
        from polyroute.nn.encoders import GraphEncoder

        graph: Router = GraphEncoder("quality")
        return graph
    raise UnknownNameError("consumer", consumer, CONSUMERS)


def embedded(texts: Mapping[str, str], featuriser: Featuriser) -> dict[str, Array]:
    """Candidate id -> embedding [d] of its description."""
    return dict(zip(texts, featuriser(list(texts.values())), strict=True))


def by_task(outcomes: Outcomes) -> Outcomes:
    """The table with each score replaced by the candidate's mean over the task: what domain-level profiles know.

    Needs labels["dataset"] and complete quality.
    """
    _, task = np.unique(np.asarray(outcomes.labels["dataset"], dtype=str), return_inverse=True)
    member = np.eye(task.max() + 1)[task]  # [n, t]
    means = member.T @ outcomes.values["quality"] / member.sum(axis=0)[:, None]
    values = {**outcomes.values, "quality": means[task]}
    return Outcomes(outcomes.queries, outcomes.pool, values, outcomes.observed, outcomes.labels)
