"""System 95, graph of tokens (arXiv:2505.00792): routing of related tokens is averaged before experts are chosen.

Related means similar in the layer's input, or attended to in the block before it. Formulas are reconstructed from the
abstract (inferred). Part: nn/neighbours.Neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def token_graph(
    dim: int,
    width: int,
    num_experts: int,
    *,
    kind: str = "similarity",
    k: int = 2,
    tau: float = 1.0,
    causal: bool = True,
    learned: bool = False,
    window: int | None = None,
    balance: float = 0.01,
    **parts: Any,
) -> MoE:
    """A softmax top-k layer that chooses by the mean scores of each token's neighbours.

    dim: D, width: F of an expert. kind: "similarity"; "attention" (of a model built with needs_attention=True);
    "uniform" and "self" are controls. tau: temperature of the similarity. causal: False only where text is read whole.
    window: look so many tokens back at most. balance: coefficient of the load balance, of the averaged scores.
    """
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.neighbours import Neighbours
    from polyroute.nn.selection import TopK

    norm = Neighbours(kind, causal=causal, tau=tau, learned=learned, window=window)
    aux = (LBL(balance), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, norm=norm, select=TopK(k), aux=aux, **parts)
