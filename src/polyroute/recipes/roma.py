"""System 67, RoMA: routers tuned after training, so that a sample takes the routes of similar ones that went well.

Scores of the last token in the last five mixture layers, three nearest neighbours among the samples answered rightly;
only those layers' routers train. Nothing changes at inference. Parts: manifold_loss, collect_routes, RouteManifold.
Source: RoMA (arXiv:2511.07419).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.manifold import RouteManifold


def roma(
    model: nn.Module, *, layers: int | Sequence[str] = -5, k: int = 3, lam: float = 1.0, **options: Any
) -> RouteManifold:
    """A tuner of a model's routers: `fit(data, embedding, seed=...)`. lam: 0.1 to 10 are worth trying (inferred).

    lam=0 tunes the same routers by the task's loss alone, the baseline of the publication. options: of RouteManifold.
    """
    from polyroute.nn.manifold import RouteManifold

    return RouteManifold(model, layers=layers, k=k, lam=lam, **options)
