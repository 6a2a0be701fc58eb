"""System 42, MulVul: a router opens a few coarse categories, a detector in each says which of its own it is.

Published with language models as router and detectors, evidence retrieved from a knowledge base, and prompts evolved
by a model other than the one that runs them; on code and 130 kinds of weakness. Here heads on embeddings with evidence
of similar labelled texts, for any labels with coarse fields; `Prompted` may take the router's place.
Parts: routers/coarse, routers/linear, routers/knn, routers/mix, offline/evolve, offline/sets.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyroute.routers.coarse import CoarseToFine
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix

EVIDENCE = 3  # similar labelled examples each detector reads


def with_evidence(rank: int | None = None, l2: float = 0.3, weight: float = 0.25) -> Mix:
    """A head a label, mixed with the share of similar examples that carry it. weight: of the evidence."""
    head, near = Linear("quality", "ridge", l2=l2, rank=rank), KNN(k=EVIDENCE, kappa=1.0)
    return Mix([head, near], [1 - weight, weight])


def coarse_to_fine(fields: Mapping[str, str], k: int = 3, merge: str = "product") -> CoarseToFine:
    """The router of fields and a detector in each, all with evidence. fields: label -> field."""
    specialists = {name: with_evidence() for name in sorted(set(fields.values()))}
    return CoarseToFine(fields, k, merge, coarse=with_evidence(), specialists=specialists)
