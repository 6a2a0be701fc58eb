"""Layers put around layers: the same experts several times over, several layers side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.inputs import Recurrent
from polyroute.nn.moe import MoE
from polyroute.nn.routing import Routing, TokenContext


class Chain(nn.Module):
    """Run a layer's experts C times in a row, each time chosen anew from what the last step gave: x_t = MoE_t(x_t-1).

    moe: the first step. The other C - 1 have its parts and its very experts (shared experts too, which run at every
    step and so count C times), but a router, objectives and taps of their own: loads are counted and balanced for each
    step, since a collapse of one hides in the sum. To hold the arithmetic of K experts in one step, choose K / C.
    inner_residual: add x_t-1 to each step. outer_residual: add x to the last; the transformer's own residual stays
    outside in either case. shared_gate: one router for all steps (a control; the publication finds it worse).

    The context goes through all steps, so a router with a state over depth carries it from step to step.
    Raises: ConfigError. Source: Chain-of-Experts (arXiv:2506.18945).
    """

    def __init__(
        self,
        moe: MoE,
        C: int = 2,
        *,
        inner_residual: bool = True,
        outer_residual: bool = False,
        shared_gate: bool = False,
    ):
        super().__init__()
        if C < 1:
            raise ConfigError("C", got=C, expected="1 step or more")
        if moe.config["out"] not in (None, moe.dim):
            raise ConfigError("moe.out", got=moe.config["out"], expected=f"the width it reads, {moe.dim}")
        self.inner_residual, self.outer_residual = inner_residual, outer_residual
        self.steps = nn.ModuleList([moe, *(_another(moe, shared_gate) for _ in range(C - 1))])

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        """x: [T, D] or [B, L, D]; the result has its shape."""
        x_t = x
        for step in self.steps:
            y = step(x_t, context=context)
            x_t = x_t + y if self.inner_residual else y
        return x_t + x if self.outer_residual else x_t

    @property
    def routings(self) -> list[Routing]:
        """What each step decided in the last forward pass."""
        return [step.routing for step in self.steps if step.routing is not None]

    def extra_repr(self) -> str:
        return f"C={len(self.steps)}, inner_residual={self.inner_residual}, outer_residual={self.outer_residual}"


def _another(moe: MoE, shared_gate: bool) -> MoE:
    """A layer of the same parts that holds the same experts."""
    step = MoE(**{**moe.config, "pool": moe.pool, "shared": moe.shared or 0})
    if shared_gate:
        step.router = moe.router
    return step


class Parallel(nn.Module):
    """Layers that read the same tokens; their outputs stand side by side ("concat") or are added ("sum").

    parts: MoE or dense layers, called as `part(x, context=...)`. For a part to give a share of the width, build it with
    `out`: two of `MoE(dim, ..., out=dim // 2)` make one layer of width `dim`. Each part routes, balances and is
    measured for itself. One of them at most may have a router with a state over depth. Raises: ConfigError.
    """

    def __init__(self, parts: Sequence[nn.Module], *, combine: str = "concat"):
        super().__init__()
        if not parts:
            raise ConfigError("parts", got="none", expected="at least one layer")
        if combine not in ("concat", "sum"):
            raise ConfigError("combine", got=combine, expected='"concat" or "sum"')
        if sum(isinstance(part, MoE) and isinstance(part.config["inp"], Recurrent) for part in parts) > 1:
            raise ConfigError("parts", got="several Recurrent inputs", expected="at most one: they would share a state")
        self.parts, self.combine = nn.ModuleList(parts), combine

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        """x: [T, D] or [B, L, D]; the result has its leading shape."""
        outputs = [part(x, context=context) for part in self.parts]
        return torch.cat(outputs, -1) if self.combine == "concat" else sum(outputs[1:], outputs[0])

    @property
    def routings(self) -> list[Routing]:
        """What each part that routes decided in the last forward pass."""
        found = [getattr(part, "routing", None) for part in self.parts]
        return [routing for routing in found if routing is not None]

    def extra_repr(self) -> str:
        return f"combine={self.combine}"
