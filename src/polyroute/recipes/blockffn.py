"""System 74, BlockFFN: a router that is differentiable and sparse, and neighbouring tokens that share experts.

ReLU and then RMS norm over the experts: what is above 0 is both the selection and the gate. Experts are deliberately
not gated (ReLU on router and gated experts loses sparsity). Two objectives make whole chunks use few experts; no load
balance beside them. Parts: ReLURMS, Positive, Raw, ActivationLocality, ChunkSparsity. Source: arXiv:2507.08771.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.continuity import Adaptive
    from polyroute.nn.moe import MoE


def blockffn(
    dim: int,
    width: int = 64,
    num_experts: int = 48,
    *,
    locality: float = 2e-3,
    sparsity: float = 5e-2,
    chunk: int = 64,
    schedule: Adaptive | None = None,
    **options: Any,
) -> MoE:
    """A layer of many narrow experts. The published smallest model has dim 768, width 64, 48 experts.

    locality, sparsity: first coefficients of ActivationLocality and ChunkSparsity, 0 leaves one out. chunk: tokens
    that should share experts. schedule: of the sparsity coefficient; None keeps it, Adaptive() is the published one
    (for long runs). options: further arguments of MoE, such as taps. A token without any expert gets 0; the tap MeanK
    says how many do.
    """
    from polyroute.nn.continuity import ActivationLocality, ChunkSparsity
    from polyroute.nn.gates import Raw
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import ReLURMS
    from polyroute.nn.selection import Positive

    aux: list[Any] = [ActivationLocality(locality)] if locality else []
    if sparsity:
        aux.append(ChunkSparsity(sparsity, chunk, schedule))
    options = {"act": "silu", "aux": aux, **options}
    return MoE(dim, width, num_experts, norm=ReLURMS(), select=Positive(), gate=Raw(), **options)


def sparsities(model: Any, batches: Any, *, m: int = 8, min_tokens: int = 10_000) -> dict[str, float]:
    """TLS and CLS_m of a model on a text: the share of experts idle for a token, and for m tokens; over all layers.

    Also mean_k, experts a token, and none, the share of (token, layer) places without any.
    """
    import torch

    from polyroute.nn.locality import chunk_union_sparsity, token_sparsity
    from polyroute.recipes.routing_locality import traces

    read = traces(model, batches, min_tokens=min_tokens)
    masks = [trace.mask_TE for trace in read.values()]
    each = torch.cat([mask.sum(1) for mask in masks])
    return {
        "tls": sum(map(token_sparsity, masks)) / len(masks),
        "cls": sum(chunk_union_sparsity(mask, m, lengths) for mask, lengths in read.values()) / len(masks),
        "mean_k": float(each.double().mean()),
        "none": float((each == 0).double().mean()),
    }
