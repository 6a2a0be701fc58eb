"""System 78, Selective Sinkhorn routing: balance from a few training steps routed by optimal transport, no loss.

Parts: nn/sinkhorn, nn/normalise (noise), kernels/sinkhorn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def selective_sinkhorn(
    dim: int,
    width: int,
    num_experts: int,
    *,
    k: int = 2,
    p: float = 0.005,
    xi: float = 0.5,
    cost: str = "linear",
    grad: str = "detach",
    noise: float = 0.0,
    seed: int = 0,
    **parts: Any,
) -> MoE:
    """A top-k layer whose routing is softmax, and on a share p of training steps a balanced transport plan.

    dim: D, width: F of an expert. p: 0.001 to 0.01. xi, cost, grad, seed: see nn/sinkhorn.SelectiveSinkhorn. noise:
    standard deviation of Gaussian noise on the logits in training (0.1 to 4 in the publication; 0: none). parts:
    further arguments of MoE. The gates are those of the plan's k largest, summing to 1.
    """
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import Noise
    from polyroute.nn.selection import TopK
    from polyroute.nn.sinkhorn import SelectiveSinkhorn

    norm = SelectiveSinkhorn(p, xi, cost, grad=grad, seed=seed)
    mods = (*((Noise(noise),) if noise else ()), *parts.pop("mods", ()))
    return MoE(dim, width, num_experts, norm=norm, mods=mods, select=TopK(k), **parts)
