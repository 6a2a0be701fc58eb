"""System 15, FactorLLM (arXiv:2408.11855): a trained network's feed-forward parts cut into experts, routers distilled.

All experts together are the network, exactly. A router with hard gates gets no gradient from the language loss; it
learns from the prior-approximate loss, which asks which slices alone come nearest to their share of the whole.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.routing import Part


def factor_llm(
    model: nn.Module,
    num_experts: int = 4,
    *,
    k: int | None = None,
    order: str = "contiguous",
    coef: float = 0.05,
    target: str = "soft",
    gate: Part | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy of a model whose dense networks are layers of slices, k of which run for a token (None: half).

    order: "contiguous" as published, "random", "kmeans"; see nn/surgery.slice_ffn. coef, target: of the loss
    nn/coupling.PA, 0 leaves it out; its teacher is the network that was cut, frozen. gate: None for E / k each.
    Train the routers, or everything, with aux_losses(model) added to the language loss; `routers(model)` are theirs.
    """
    from polyroute.nn.coupling import PA
    from polyroute.nn.experts import FeedForward
    from polyroute.nn.gates import Hard
    from polyroute.nn.moe import MoE
    from polyroute.nn.scorers import Linear
    from polyroute.nn.selection import TopK
    from polyroute.nn.surgery import slice_ffn
    from polyroute.nn.transplant import transplant

    chosen = max(num_experts // 2, 1) if k is None else k

    def cut(name: str, network: FeedForward) -> MoE:
        teacher = copy.deepcopy(network).requires_grad_(False)
        return MoE(
            network.w1.in_features,
            max(network.w2.in_features // num_experts, 1),
            num_experts,
            scorer=Linear(bias=True),
            select=TopK(chosen),
            gate=Hard(num_experts / chosen) if gate is None else gate,
            pool=slice_ffn(network, num_experts, order, seed=seed),
            aux=(PA(coef, teacher=teacher, target=target),) if coef else (),
        )

    return transplant(model, cut)


def routers(model: nn.Module) -> list[nn.Parameter]:
    """The routers' parameters; the others of the model are frozen by this call, as nothing but routers is distilled."""
    from polyroute.nn.moe import layers

    model.requires_grad_(False)
    found = [p for layer in layers(model).values() for p in layer.router.parameters()]
    for parameter in found:
        parameter.requires_grad_(True)
    return found
