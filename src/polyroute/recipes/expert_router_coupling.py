"""System 25, expert-router coupling (ERC, arXiv:2512.23447): each router row excites its own expert most.

A router row stands for the tokens its expert is sent. The loss asks that this proxy token, shaken a little, excites its
own expert more than others, and its expert more than other proxies: E^2 small products, however many tokens there are.
Parts: nn/coupling, nn/losses, nn/metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.moe import MoE


def expert_router_coupling(
    dim: int,
    width: int,
    num_experts: int,
    *,
    k: int = 2,
    alpha: float = 1.0,
    coef: float = 1.0,
    balance: float = 0.01,
    scope: str = "global",
    **parts: Any,
) -> MoE:
    """A softmax top-k layer with the coupling loss beside load balance.

    dim: D, width: F of an expert. alpha: below 1 forces more specialisation, above 1 less. coef, balance: of the two
    losses; scope: where balance is counted. parts: further arguments of MoE; the scorer stays Linear on Hidden.
    """
    from polyroute.nn.coupling import ERC
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK

    aux = (ERC(alpha, coef), LBL(balance, scope), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, select=TopK(k), aux=aux, **parts)


def excitement(layer: MoE, x_TD: Tensor) -> Tensor:
    """How strongly each token excites each expert: the norm of its gate projection [T, E]. x_TD: the layer's input."""
    from polyroute.nn.coupling import coupling, rows_and_gates

    return coupling(x_TD.detach(), rows_and_gates(layer)[1]).detach()


def agreement(layer: MoE, x_TD: Tensor) -> float:
    """Share of tokens, 0 to 1, whose likeliest expert is the one they excite most; 1 / E by chance."""
    likeliest_T = layer.router.scorer(x_TD.detach()).argmax(-1)
    return float((likeliest_T == excitement(layer, x_TD).argmax(-1)).float().mean())


def standing(layer: MoE, x_TD: Tensor) -> float:
    """Share of the other experts, mean over tokens, that a token excites less than its likeliest one; 0.5 by chance."""
    likeliest_T1 = layer.router.scorer(x_TD.detach()).argmax(-1, keepdim=True)
    norms_TE = excitement(layer, x_TD)
    below_T = (norms_TE < norms_TE.gather(1, likeliest_T1)).float().sum(-1)
    return float(below_T.mean() / max(norms_TE.shape[1] - 1, 1))
