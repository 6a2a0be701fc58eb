"""System 14, GEM and SCAR: is a specialised model worth its damage elsewhere, and which domain is a text about.

Metrics DSI, GG and CDTR audit a specialised model against its base; the sparse cross-attention router sends tokens to
the few domain prototypes they match. The paper gives no formulas: all of them are polyroute's own (inferred).
Parts: offline/specialise, kernels/attend, nn/encoders:CrossAttention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyroute.errors import OutcomesError, UnknownCandidateError
from polyroute.offline.specialise import Specialisation, home_of, specialisation
from polyroute.offline.split import groups_of
from polyroute.types import Array, Outcomes, Rng


def domains_of(outcomes: Outcomes, domain: Mapping[str, str]) -> tuple[Outcomes, Array]:
    """The queries of tasks that have a domain, and their domains [n]. domain: task (labels["dataset"]) -> domain."""
    tasks = np.asarray(outcomes.labels.get("dataset", []), dtype=str)
    rows = np.isin(tasks, list(domain))
    if not rows.any():
        raise OutcomesError(f"labels['dataset']: expected tasks among {sorted(domain)}, got none of them.")
    return outcomes.take(rows), np.array([domain[task] for task in tasks[rows]])


def audit(
    outcomes: Outcomes, special: str, base: str, domains: Array, target: str, rng: Rng, metric: str = "quality"
) -> Specialisation:
    """DSI, GG and CDTR of one candidate of a table against another, on the queries both answered."""
    column = {c.id: j for j, c in enumerate(outcomes.pool)}
    if missing := [c for c in (special, base) if c not in column]:
        raise UnknownCandidateError(missing, known=column)
    pair = outcomes.values[metric][:, [column[base], column[special]]]
    both = np.isfinite(pair).all(axis=1)
    return specialisation(
        pair[both, 0], pair[both, 1], np.asarray(domains)[both], target, rng, groups=groups_of(outcomes)[both]
    )


def home(outcomes: Outcomes, candidate: str, domains: Array, metric: str = "quality") -> str:
    """The domain where a candidate stands out most from its own mean elsewhere."""
    column = {c.id: j for j, c in enumerate(outcomes.pool)}
    if candidate not in column:
        raise UnknownCandidateError([candidate], known=column)
    y = outcomes.values[metric][:, column[candidate]]
    known = np.isfinite(y)
    return next(iter(home_of(y[known], np.asarray(domains)[known])))


def domain_router(**settings: Any) -> Any:
    """The sparse cross-attention router; needs polyroute[nn]."""
    from polyroute.nn.encoders import CrossAttention

    return CrossAttention(**settings)
