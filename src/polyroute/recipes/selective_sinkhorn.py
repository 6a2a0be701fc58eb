"""System 78, Selective Sinkhorn routing: balance from a few training steps routed by optimal transport, no loss.

Parts: nn/sinkhorn, kernels/sinkhorn. Source: Nguyen et al. 2025 (arXiv:2511.08972).
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
    standard deviation of Gaussian noise on the logits of the other training steps (0.1 to 4 in the publication; 0:
    none). parts: further arguments of MoE. The gates are those of the k largest, summing to 1; with one expert a token
    that would be constant, and its score is the gate.
    """
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK
    from polyroute.nn.sinkhorn import SelectiveSinkhorn

    norm = SelectiveSinkhorn(p, xi, cost, grad=grad, seed=seed, noise=noise)
    gate = parts.pop("gate", Raw() if k == 1 else Renorm())
    return MoE(dim, width, num_experts, norm=norm, select=TopK(k), gate=gate, **parts)
