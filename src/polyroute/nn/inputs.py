"""Part 1, what the router reads: TokenContext -> r [T, R].

Every class describes an input; `build(dim, num_experts)` gives a callable on a TokenContext. Its attribute `width` is R
where that is not D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.routing import TokenContext, require_shape


@dataclass(frozen=True)
class Hidden:
    """The hidden state that the experts read."""

    def build(self, dim: int, num_experts: int) -> Hidden:
        return self

    def __call__(self, ctx: TokenContext) -> Tensor:
        return ctx.x_TD


@dataclass(frozen=True)
class PreAttention:
    """The residual stream before the block's attention, as it is: experts can be fetched while attention runs.

    Source: SmallThinker (arXiv:2507.20984).
    """

    def build(self, dim: int, num_experts: int) -> PreAttention:
        return self

    def __call__(self, ctx: TokenContext) -> Tensor:
        if ctx.pre_attention_TD is None:
            raise ConfigError(
                "inp", got=None, expected="context.pre_attention_TD", hint="Pass the block's input in the TokenContext."
            )
        require_shape("pre_attention_TD", ctx.pre_attention_TD, tuple(ctx.x_TD.shape))
        return ctx.pre_attention_TD


class Recurrent:
    """A state carried over depth, not over time: one GRU cell shared by all layers, a projection of its own for each.

    cell: the nn.GRUCell that all layers share, input and hidden width R. The state of layer l reaches layer l + 1
    as `context.carry_TR`; it is 0 before the first. detach: cut the gradient between layers. carry: False starts
    every layer from 0 (controls of the proof). Source: RMoE (arXiv:2408.06793).
    """

    def __init__(self, cell: nn.GRUCell, *, detach: bool = False, carry: bool = True):
        if not isinstance(cell, nn.GRUCell):
            raise ConfigError("cell", got=type(cell).__name__, expected="an nn.GRUCell for all layers")
        if cell.input_size != cell.hidden_size:
            raise ConfigError("cell", got=(cell.input_size, cell.hidden_size), expected="input and hidden of one width")
        self.cell, self.detach, self.carry = cell, detach, carry

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return _Recurrent(dim, self.cell, self.detach, self.carry)


class _Recurrent(nn.Module):
    def __init__(self, dim: int, cell: nn.GRUCell, detach: bool, carry: bool):
        super().__init__()
        self.width, self.detach, self.carries = cell.hidden_size, detach, carry
        self.project = nn.Linear(dim, cell.input_size, bias=False)
        self.cell = cell  # shared: torch counts and saves it once a model

    def forward(self, ctx: TokenContext) -> Tensor:
        before = ctx.carry_TR if self.carries else None
        if before is not None:
            require_shape("carry_TR", before, (ctx.num_tokens, self.width))
            before = before.detach() if self.detach else before
        with torch.autocast(ctx.x_TD.device.type, enabled=False):
            r_TR = F.linear(ctx.x_TD.float(), self.project.weight.float())
            ctx.carry_TR = self._in_fp32(r_TR, None if before is None else before.float())
        return ctx.carry_TR

    def _in_fp32(self, r_TR: Tensor, before: Tensor | None) -> Tensor:
        """The cell with weights of fp32, whatever the model was converted to."""
        if self.cell.weight_hh.dtype == torch.float32:
            return self.cell(r_TR, before)
        weights = {name: value.float() for name, value in self.cell.named_parameters()}
        return torch.func.functional_call(self.cell, weights, (r_TR, before))


class TokenStream:
    """Token ids alone, through a small causal network of their own: routes are known before the model runs.

    network: token ids [B, L] -> r [B, L, R], with attribute `width`. May be shared by all layers.
    Source: Read-ME (arXiv:2410.19123).
    """

    def __init__(self, network: nn.Module):
        self.network = network

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return _TokenStream(self.network)


class _TokenStream(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(getattr(network, "width", None), int):
            raise ConfigError("inp.network", got=type(network).__name__, expected="a network with an attribute `width`")
        self.network, self.width = network, network.width

    def forward(self, ctx: TokenContext) -> Tensor:
        if ctx.token_ids_T is None:
            raise ConfigError("inp", got=None, expected="context.token_ids_T", hint="Pass the ids in the TokenContext.")
        return self.network(ctx.rows(ctx.token_ids_T)).reshape(ctx.num_tokens, self.width)


@dataclass(frozen=True)
class Pooled:
    """The mean state of the sequence, the same for all its tokens. causal: the mean up to each token."""

    causal: bool = False

    def build(self, dim: int, num_experts: int) -> Pooled:
        return self

    def __call__(self, ctx: TokenContext) -> Tensor:
        x_BLD = ctx.rows(ctx.x_TD).float()
        real_BL1 = x_BLD.new_ones(*ctx.shape, 1) if ctx.valid_T is None else ctx.rows(ctx.valid_T)[..., None].float()
        x_BLD = torch.where(real_BL1 > 0, x_BLD, torch.zeros_like(x_BLD))
        if self.causal:
            mean = x_BLD.cumsum(1) / real_BL1.cumsum(1).clamp(min=1)
        else:
            mean = (x_BLD.sum(1, keepdim=True) / real_BL1.sum(1, keepdim=True).clamp(min=1)).expand_as(x_BLD)
        return mean.reshape(ctx.num_tokens, mean.shape[-1])
