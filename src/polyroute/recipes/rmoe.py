"""System 3, RMoE (arXiv:2408.06793): the router of each layer reads a state the routers before it have written.

One GRU cell for all layers, run over depth and not over the sequence: each layer projects its own input into it and
scores experts from the state. The state starts at 0 for every token in the first layer, so nothing is kept between
decoding steps. Part: nn/inputs.Recurrent; the state travels in TokenContext.carry_TR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def rmoe(
    dim: int,
    width: int,
    num_experts: int = 16,
    *,
    k: int = 2,
    state: int = 128,
    carry: bool = True,
    detach: bool = False,
    balance: float = 0.01,
    **parts: Any,
) -> Callable[[int], MoE]:
    """Layers of one model: `TinyLM(..., ffn=rmoe(64, 128))`, or call it with 0, 1, ... and hand the carry on.

    dim: D, width: F of an expert. state: of the GRU; 128 as published, and wider did not help. carry: False starts
    every layer from 0, detach: True cuts the gradient between layers (both are controls: the publication finds that
    the gradient path gives most of the gain). balance: coefficient of the load balance. parts: further ones of MoE.
    """
    from torch import nn

    from polyroute.nn.inputs import Recurrent
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK

    inp = Recurrent(nn.GRUCell(state, state), carry=carry, detach=detach)
    aux = (LBL(balance), *parts.pop("aux", ()))
    return lambda layer: MoE(dim, width, num_experts, inp=inp, select=TopK(k), aux=aux, **parts)
