"""System 22, Chain-of-Experts (arXiv:2506.18945): the experts of one layer run several times over, chosen anew.

Where a layer takes K experts side by side, the chain takes K / C of them C times, each step reading what the last one
made of the token: the same arithmetic and weights, more depth. Part: nn/wrappers.Chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyroute.errors import ConfigError

if TYPE_CHECKING:
    from polyroute.nn.wrappers import Chain


def chain_of_experts(
    dim: int,
    width: int,
    num_experts: int = 63,
    *,
    k: int = 8,
    C: int = 2,
    shared: int = 0,
    inner_residual: bool = True,
    outer_residual: bool = False,
    shared_gate: bool = False,
    balance: float = 0.01,
    **parts: Any,
) -> Chain:
    """A chain of C steps with k experts over all steps, k / C each; C = 1 is the plain layer with a residual.

    dim: D, width: F of an expert. shared: width of a dense expert that runs at every step (the publication has one).
    Gates are the raw softmax, not renormalised; balance is counted for each step. The residuals and shared_gate: see
    Chain. parts: further ones of MoE. Raises: ConfigError unless C divides k.
    """
    from polyroute.nn.gates import Raw
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK
    from polyroute.nn.wrappers import Chain

    if C < 1 or k % C:
        raise ConfigError("C", got=C, expected=f"a divisor of k = {k}")
    aux = (LBL(balance), *parts.pop("aux", ()))
    parts = {"gate": Raw(), **parts}
    moe = MoE(dim, width, num_experts, select=TopK(k // C), shared=shared, aux=aux, **parts)
    return Chain(moe, C, inner_residual=inner_residual, outer_residual=outer_residual, shared_gate=shared_gate)
