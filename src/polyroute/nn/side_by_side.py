"""Many small layers of one form trained as one: each sequence of a batch belongs to its own layer.

For experiments over many worlds: what costs most in a small layer is calling it. Here the router's linear map and the
experts' products run for all layers at once; every other part is the layers' own. Shape letter W: layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE
from polyroute.nn.routing import Routing, TokenContext


def side_by_side(layers: Sequence[MoE]) -> MoE:
    """One layer for x [W, L, D], whose sequence w goes through a copy of layers[w] and through nothing else.

    layers: alike but for their weights and their norms: a linear router without bias, k fixed, experts of their own, no
    modifier. Balance is then counted for each sequence, which is each layer; the sum of a loss over the layers trains
    each as it would be alone, if the optimizer treats every number for itself (no clipping of the whole gradient). A
    router that gets no gradient in some step gets zeros here, so that its momentum moves on.
    """
    if not layers:
        raise ConfigError("layers", got="none", expected="at least one")
    config = layers[0].config
    if any(config[key] for key in ("mods", "shared", "taps")) or config["pool"] is not None:
        raise ConfigError("layers", got="modifiers, taps or a shared part", expected="plain layers with own experts")
    return MoE(
        config["dim"],
        config["width"],
        config["num_experts"],
        scorer=Scorers([layer.router.scorer.weight for layer in layers]),
        norm=Norms([layer.router.norm for layer in layers]),
        select=config["select"],
        gate=config["gate"],
        pool=Pools(layers),
        aux=tuple(replace(part, scope="sequence") if isinstance(part, LBL) else part for part in config["aux"]),
    )


class Scorers(nn.Module):
    """A linear router for each sequence: weight [W, E, D]."""

    def __init__(self, weights: Sequence[Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([weight.detach() for weight in weights]))

    def build(self, dim: int, num_experts: int) -> Scorers:
        return self

    def forward(self, r_TR: Tensor, valid_T: Tensor | None = None) -> Tensor:
        many = len(self.weight)
        if len(r_TR) % many:
            raise ShapeError("x", got=tuple(r_TR.shape), expected=(f"{many} sequences", "L", "D"))
        return torch.bmm(r_TR.float().reshape(many, -1, r_TR.shape[-1]), self.weight.transpose(1, 2)).flatten(0, 1)


class Norms:
    """Each sequence's logits through its own layer's norm, which sees no other's. Padding is not passed on."""

    def __init__(self, norms: Sequence[Any]):
        self.norms = list(norms)

    def build(self, dim: int, num_experts: int) -> Norms:
        return self

    def __call__(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        parts = logits_TE.chunk(len(self.norms))
        return torch.cat([norm(part, ctx) for norm, part in zip(self.norms, parts, strict=True)])


class Pools(nn.Module):
    """The experts of all layers, w1 [W, E, G, D] and w2 [W, E, F, O]; all of a layer's run on each of its tokens."""

    def __init__(self, layers: Sequence[MoE]):
        super().__init__()
        self.act, self.num_experts = layers[0].pool.act, layers[0].pool.num_experts
        self.w1_WEGD = nn.Parameter(torch.stack([layer.pool.w1_EGD.detach() for layer in layers]))
        self.w2_WEFO = nn.Parameter(torch.stack([layer.pool.w2_EFO.detach() for layer in layers]))

    def forward(self, x_TD: Tensor, routing: Routing, choose: str = "auto") -> Tensor:
        """y [T, O]. choose: not read."""
        w, e, g, d = self.w1_WEGD.shape
        h_WLG = torch.bmm(x_TD.reshape(w, -1, d), self.w1_WEGD.reshape(w, e * g, d).transpose(1, 2))
        a_WLEF = self.act.forward(h_WLG.reshape(w, -1, e, g)) * routing.gates_TE().reshape(w, -1, e, 1)
        return torch.bmm(a_WLEF.flatten(2), self.w2_WEFO.flatten(1, 2)).flatten(0, 1)
