"""System 72, PALACE: how many tokens should this answer have cost, and does the bill drift away from that.

Parts: offline/audit (log-count regression, CUSUM), signals/surface (looks of the prompt), signals/answer (numbers of
the query). The paper tunes a small language model per domain; here a ridge on cheap features takes its place.
An alarm is evidence of an anomaly, never proof.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.offline.audit import TokenAuditor
from polyroute.routers.rows import embeddings
from polyroute.signals.answer import RELATION, final, numbers_of
from polyroute.signals.surface import surface
from polyroute.types import Array, Query

DIRECTIONS = 16  # of the prompt's embedding


def audit_features(queries: Sequence[Query], finals: Sequence[str] | None = None, basis: Array | None = None) -> Array:
    """[n, p] of prompts, and of the visible final answers where given; what was thought in between is hidden.

    basis: [d, r] directions of the embeddings, from `directions`; None: embeddings are left out.
    """
    rows = [
        [np.log1p(len(query.text)), np.log1p(len(query.text.split())), len(numbers_of(query.text)),
         query.text.count("."), len(RELATION.findall(query.text)), *surface(query.text)]
        for query in queries
    ]  # fmt: skip
    parts = [np.array(rows, float)]
    if finals is not None:
        sizes = [final(text) for text in finals]
        parts.append(np.array([[np.log1p(abs(float(s))) if s and not s.isalpha() else 0.0] for s in sizes]))
    if basis is not None:
        parts.append(embeddings(queries) @ basis)
    return np.concatenate(parts, axis=1)


def directions(queries: Sequence[Query], count: int = DIRECTIONS) -> Array:
    """[d, count] along which the queries' embeddings vary most."""
    x = embeddings(queries).astype(float)
    found: Array = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:count].T
    return found


def palace(growth: float = 0.2, **options: float) -> TokenAuditor:
    """The auditor, to be fitted on a period that is trusted. growth: the inflation to be quick at."""
    return TokenAuditor(growth, **options)  # type: ignore[arg-type]
