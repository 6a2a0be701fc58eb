"""System 99, ReXMoE (arXiv:2510.17483): layers of a group may use each other's experts, opened step by step.

No expert is added: r layers hold one pool of r x E, each router has r times the rows, and a mask opens the experts of
other layers one after the other. Parts: nn/groups.share_in_groups, nn/normalise.CandidateMask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def rexmoe(model: nn.Module, *, r: int = 4, start: int | None = 10_000, end: int = 30_000, seed: int = 0) -> nn.Module:
    """Make groups of r consecutive MoE layers of a model share their experts; in place, before the optimizer is made.

    start, end: optimizer steps between which experts of other layers open (as published, of one summary); before
    `start` the model computes exactly what it did. start None: everything is open at once, a control. seed: of the
    orders and of the routers' new rows. The publication finds r of 2 to 4 best and a collapse at 16 and more.

        model = rexmoe(TinyLM(..., ffn=lambda layer: MoE(64, 128, 8, aux=[LBL(0.01)])), r=2, start=200, end=600)

    Balance (LBL) is among the open experts of each layer; `nn/groups.pool_counts` has the load of the shared pool.
    """
    from polyroute.nn.groups import share_in_groups

    return share_in_groups(model, r, start=start, end=end, seed=seed)
