"""System 24, global-batch balance (arXiv:2501.11873): experts are counted over the whole optimizer step.

A balance loss per sequence asks every sequence to use all experts, also one that is about a single thing; counted over
the step, a sequence may use few of them as long as the others use the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def global_balance(
    dim: int,
    width: int,
    num_experts: int,
    *,
    k: int = 2,
    coef: float = 0.01,
    scope: str = "global",
    group: Any = None,
    **parts: Any,
) -> MoE:
    """A softmax top-k layer whose balance is judged by the counts of all micro-batches and ranks of a step.

    dim: D, width: F of an expert. scope: "global", or "sequence", "micro", "group" to compare with; see nn/losses.LBL.
    group: the torch.distributed processes that count together, None for all. parts: further arguments of MoE.

        loss = task + sum(aux_losses(model).values())   # once a micro-batch
        end_step(model)                                 # once an optimizer step: counting starts again
    """
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK

    aux = (LBL(coef, scope, group), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, select=TopK(k), aux=aux, **parts)
