"""System 102, top-p dynamic routing: experts until their probabilities sum to more than p; hard tokens use more.

Gates are the probabilities themselves, not renormalised; the load balance is of all pairs, and a small entropy loss
keeps routers sure (a flat one is expensive: 16 equal experts at p = 0.4 are 7 a token). Every second layer of the
published model is a mixture. Parts: TopP, Raw, LBL, Entropy. Source: Huang et al. 2024 (arXiv:2403.07652).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.moe import MoE
    from polyroute.nn.transformer import TinyLM


def top_p_experts(
    dim: int,
    width: int,
    num_experts: int = 16,
    *,
    p: float = 0.4,
    k_max: int | None = None,
    renorm: bool = False,
    balance: float = 1e-2,
    entropy: float = 1e-4,
    **options: Any,
) -> MoE:
    """A layer whose tokens use as many experts as they need.

    p: share of the probability that the chosen must exceed. k_max: at most so many a token, which bounds memory while
    the router is still flat. renorm: gates that sum to 1 (another public code base). balance, entropy: coefficients,
    0 leaves one out. options: further arguments of MoE.
    """
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.losses import LBL, Entropy
    from polyroute.nn.metrics import MeanK
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopP

    aux = [LBL(balance)] * bool(balance) + [Entropy(entropy)] * bool(entropy)
    options = {"aux": aux, "taps": (MeanK(),), "gate": Renorm() if renorm else Raw(), **options}
    return MoE(dim, width, num_experts, select=TopP(p, k_max), **options)


def top_p_lm(
    vocab: int, dim: int, num_layers: int, num_heads: int, width: int, num_experts: int = 16, *,
    context: int = 256, **options: Any,
) -> TinyLM:  # fmt: skip
    """A language model with a mixture in every second layer, the others dense and 2 x `width` wide.

    options: those of `top_p_experts`.
    """
    from polyroute.nn.experts import FeedForward
    from polyroute.nn.transformer import TinyLM

    def part(layer: int) -> nn.Module:
        if layer % 2 == 0:
            return FeedForward(dim, 2 * width)
        return top_p_experts(dim, width, num_experts, **options)

    return TinyLM(vocab, dim, num_layers, num_heads, part, context=context)
