"""Part 3, scores of related tokens mixed before anybody is chosen: a graph of the tokens of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.normalise import Softmax
from polyroute.nn.routing import Part, TokenContext, require_shape

KINDS = ("similarity", "attention", "uniform", "self")


@dataclass(frozen=True)
class Neighbours:
    """A normaliser: each token's scores become the mean of its neighbours' scores, weighted by how related they are.

    kind: "similarity", softmax over j of x_i W x_j / (tau sqrt(D)); "attention", the weights of the block's attention
    (a model with needs_attention=True); and two controls: "uniform", all alike, and "self", which is the inner
    normaliser alone. learned: W is a matrix, first the identity; else it stays the identity. causal: no token looks
    ahead. window: look at the last `window` tokens only, in linear memory (similarity, causal). mix: what is averaged,
    "probs" (what `inner` makes of the logits) or "logits". Sequences are never mixed; padding is nobody's neighbour.

    Objectives and gates read the mixed scores; experts still process the token itself.
    Source: Nguyen et al. 2025, graph of tokens (arXiv:2505.00792); formulas reconstructed, the scale sqrt(D) ours
    (inferred).
    """

    kind: str = "similarity"
    causal: bool = True
    tau: float = 1.0
    mix: str = "probs"
    inner: Part = field(default_factory=Softmax)
    learned: bool = False
    window: int | None = None

    def build(self, dim: int, num_experts: int) -> nn.Module:
        if self.kind not in KINDS:
            raise ConfigError("neighbours.kind", got=self.kind, expected=f"one of {', '.join(KINDS)}")
        if self.mix not in ("probs", "logits"):
            raise ConfigError("neighbours.mix", got=self.mix, expected='"probs" or "logits"')
        if not self.tau > 0:
            raise ConfigError("neighbours.tau", got=self.tau, expected="a temperature above 0")
        if self.window is not None and (self.window < 1 or not self.causal or self.kind != "similarity"):
            got = f"{self.window} with kind={self.kind}, causal={self.causal}"
            raise ConfigError("neighbours.window", got=got, expected="1 or more, for causal similarity")
        return _Neighbours(dim, num_experts, self)


class _Neighbours(nn.Module):
    def __init__(self, dim: int, num_experts: int, config: Neighbours):
        super().__init__()
        self.config = config
        self.inner = config.inner.build(dim, num_experts)
        self.weight = nn.Parameter(torch.eye(dim)) if config.learned and config.kind == "similarity" else None

    def forward(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        if isinstance(logits_TE, tuple):
            raise ConfigError("norm", got="scores of product keys", expected="a score for each expert")
        if self.config.mix == "logits":
            closed_TE = logits_TE == -torch.inf  # by a mask, and so it stays
            mixed_TE = self._mix(logits_TE.masked_fill(closed_TE, 0.0), ctx)
            return self.inner(mixed_TE.masked_fill(closed_TE, -torch.inf), ctx)
        return self._mix(self.inner(logits_TE, ctx), ctx)

    def _mix(self, values_TE: Tensor, ctx: TokenContext) -> Tensor:
        if self.config.kind == "self":
            return values_TE
        with torch.autocast(values_TE.device.type, enabled=False):
            values_BLE = ctx.rows(values_TE.float())
            if self.config.window is None:
                mixed = self.weights(ctx) @ values_BLE
            else:
                mixed = self._windowed(values_BLE, ctx)
        return mixed.reshape(values_TE.shape)

    def weights(self, ctx: TokenContext) -> Tensor:
        """How much each token (row) reads of each [B, L, L]; rows sum to 1."""
        length, device = ctx.shape[1], ctx.x_TD.device
        seen = torch.ones(length, length, dtype=torch.bool, device=device)
        seen = (seen.tril() if self.config.causal else seen)[None]
        own = torch.eye(length, dtype=torch.bool, device=device)
        if ctx.valid_T is not None:
            real_BL = ctx.rows(ctx.valid_T)
            seen = (seen & real_BL[:, None, :] & real_BL[:, :, None]) | own  # padding reads itself
        if self.config.kind == "attention":
            return _within(self._attention(ctx), seen, own)
        if self.config.kind == "uniform":
            share = seen.float() / seen.sum(-1, keepdim=True)
            return share.expand(ctx.shape[0], -1, -1)
        query_BLD, key_BLD = self._states(ctx)
        return (query_BLD @ key_BLD.mT).masked_fill(~seen, -torch.inf).softmax(-1)

    def _states(self, ctx: TokenContext) -> tuple[Tensor, Tensor]:
        """Queries, scaled, and keys, both [B, L, D] in fp32."""
        x_BLD = ctx.rows(ctx.x_TD).float()
        query = x_BLD
        if self.weight is not None:
            if x_BLD.shape[-1] != len(self.weight):
                raise ShapeError("neighbours.weight", got=tuple(self.weight.shape), expected=(x_BLD.shape[-1],) * 2)
            query = x_BLD @ self.weight.float()
        return query / (self.config.tau * x_BLD.shape[-1] ** 0.5), x_BLD

    def _attention(self, ctx: TokenContext) -> Tensor:
        if ctx.attention_BLL is None:
            hint = "Build the model with needs_attention=True, or pass it in the TokenContext."
            raise ConfigError("norm", got=None, expected="context.attention_BLL", hint=hint)
        require_shape("attention_BLL", ctx.attention_BLL, (*ctx.shape, ctx.shape[1]))
        return ctx.attention_BLL.float()

    def _windowed(self, values_BLE: Tensor, ctx: TokenContext) -> Tensor:
        """The same over the last `window` tokens: each block of so many tokens reads itself and the block before."""
        window, (B, L) = self.config.window, ctx.shape
        query_BLD, key_BLD = self._states(ctx)
        real_BL = torch.ones(B, L, dtype=torch.bool, device=values_BLE.device)
        real_BL = real_BL if ctx.valid_T is None else ctx.rows(ctx.valid_T)
        query = _blocks(query_BLD, window)
        key, value = _with_block_before(_blocks(key_BLD, window)), _with_block_before(_blocks(values_BLE, window))
        real = _with_block_before(_blocks(real_BL[..., None].float(), window))[..., 0] > 0  # [B, n, 2 W]
        i = torch.arange(window, device=real.device)[:, None]
        back = i + window - torch.arange(2 * window, device=real.device)[None]  # how far key j lies behind query i
        real_query = real[..., window:, None]
        seen = ((back >= 0) & (back < window) & real[..., None, :] & real_query) | (back == 0)
        share = (query @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)
        return (share @ value).flatten(1, 2)[:, :L]

    def end_step(self) -> None:
        if hasattr(self.inner, "end_step"):
            self.inner.end_step()

    def extra_repr(self) -> str:
        c = self.config
        return f"kind={c.kind}, causal={c.causal}, tau={c.tau}, mix={c.mix}, learned={c.learned}, window={c.window}"


def _within(weights_BLL: Tensor, seen: Tensor, own: Tensor) -> Tensor:
    """Weights on what may be seen, rows summing to 1; a row without any reads itself."""
    kept = torch.where(seen, weights_BLL, 0.0)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / torch.where(total > 0, total, 1.0), own.float())


def _blocks(x_BLD: Tensor, window: int) -> Tensor:
    """[B, L, D] -> [B, n, window, D], zeros at the end."""
    B, L, D = x_BLD.shape
    return F.pad(x_BLD, (0, 0, 0, -L % window)).reshape(B, -(-L // window), window, D)


def _with_block_before(x_BnWD: Tensor) -> Tensor:
    """[B, n, W, D] -> [B, n, 2 W, D]: the block before, zeros before the first, then the block."""
    return torch.cat([F.pad(x_BnWD, (0, 0, 0, 0, 1, 0))[:, :-1], x_BnWD], 2)
