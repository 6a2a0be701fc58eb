"""A small causal transformer whose feed-forward part is anything of the form `ffn(x, context=...)`: MoE or dense.

Every block hands its `ffn` a TokenContext: the residual stream before the block, token ids, padding, the attention
when somebody asked for it, and the state of the last layer's router. That state is an explicit input and output of a
block, so that checkpointing and pipeline stages carry it along.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.routing import TokenContext

FeedForwardOf = Callable[[int], nn.Module]  # layer -> a module called as ffn(x_BLD, context=TokenContext)


class Attention(nn.Module):
    """Causal self-attention over real tokens. Returns (y [B, L, D], mean weights [B, L, L] where `weights` asks)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError("num_heads", got=num_heads, expected=f"a divisor of dim = {dim}")
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None, weights: bool) -> tuple[Tensor, Tensor | None]:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        mask = None if valid_BL is None and not weights else _may_see(L, valid_BL, x_BLD.device)
        if weights:
            scores = (q @ k.mT).float() * (D // self.num_heads) ** -0.5
            attention_BHLL = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            y, mean_BLL = attention_BHLL.to(v.dtype) @ v, attention_BHLL.mean(1)
        else:
            y, mean_BLL = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None), None
        return self.out(y.transpose(1, 2).reshape(B, L, D)), mean_BLL


def _may_see(length: int, valid_BL: Tensor | None, device: torch.device) -> Tensor:
    """bool [B or 1, 1, L, L]: which token (row) reads which; itself always, so that no row is empty."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if valid_BL is None:
        return causal[None, None]
    return (causal & valid_BL[:, None, None, :]) | torch.eye(length, dtype=torch.bool, device=device)


class Block(nn.Module):
    """Attention and `ffn`, each after a norm and added to the stream. num_heads 0: no attention."""

    def __init__(self, dim: int, num_heads: int, ffn: nn.Module, layer: int):
        super().__init__()
        self.layer = layer
        self.norm1 = nn.RMSNorm(dim, eps=1e-6) if num_heads else None
        self.attention = Attention(dim, num_heads) if num_heads else None
        self.norm2, self.ffn = nn.RMSNorm(dim, eps=1e-6), ffn

    def forward(
        self, x_BLD: Tensor, carry_TR: Tensor | None, ids_BL: Tensor | None, valid_BL: Tensor | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the stream after the block, and the router's state for the next one (None: it has none)."""
        before_TD, attention_BLL = x_BLD.flatten(0, 1), None
        if self.attention is not None:
            y_BLD, attention_BLL = self.attention(self.norm1(x_BLD), valid_BL, weights)
            x_BLD = x_BLD + y_BLD
        h_BLD = self.norm2(x_BLD)
        context = TokenContext(
            h_BLD.flatten(0, 1),
            (x_BLD.shape[0], x_BLD.shape[1]),
            pre_attention_TD=before_TD,
            attention_BLL=attention_BLL,
            carry_TR=carry_TR,
            token_ids_T=None if ids_BL is None else ids_BL.flatten(),
            valid_T=None if valid_BL is None else valid_BL.flatten(),
            layer=self.layer,
        )
        return x_BLD + self.ffn(h_BLD, context=context), context.carry_TR


class Stack(nn.Module):
    """num_layers blocks and a last norm: [B, L, D] -> [B, L, D].

    checkpoint: keep only the stream between blocks and compute the rest again in the backward pass.
    needs_attention: compute attention weights in the open and hand their mean over heads to every `ffn`.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn: FeedForwardOf,
        *,
        checkpoint: bool = False,
        needs_attention: bool = False,
    ):
        super().__init__()
        if num_layers < 1:
            raise ConfigError("num_layers", got=num_layers, expected="1 or more")
        if needs_attention and not num_heads:
            raise ConfigError("needs_attention", got=True, expected="False without attention (num_heads=0)")
        self.blocks = nn.ModuleList(Block(dim, num_heads, ffn(layer), layer) for layer in range(num_layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.checkpoint, self.needs_attention = checkpoint, needs_attention

    def forward(self, x_BLD: Tensor, ids_BL: Tensor | None, valid_BL: Tensor | None) -> Tensor:
        carry_TR = None
        for block in self.blocks:
            arguments = (x_BLD, carry_TR, ids_BL, valid_BL, self.needs_attention)
            if self.checkpoint and torch.is_grad_enabled():
                x_BLD, carry_TR = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BLD, carry_TR = block(*arguments)
        return self.norm(x_BLD)


class TinyLM(nn.Module):
    """A language model: ids [B, L] -> logits [B, L, V], learned positions, RMS norm before each part.

    ffn: layer -> module, e.g. `lambda layer: MoE(64, 128, 8)`. context: the longest sequence.
    """

    def __init__(
        self,
        vocab: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn: FeedForwardOf,
        *,
        context: int = 256,
        checkpoint: bool = False,
        needs_attention: bool = False,
    ):
        super().__init__()
        self.vocab, self.context = vocab, context
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.5)
        self.stack = Stack(dim, num_layers, num_heads, ffn, checkpoint=checkpoint, needs_attention=needs_attention)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids_BL: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """valid_BL: bool, False is padding, None: all are real. Raises: ShapeError."""
        if ids_BL.ndim != 2 or ids_BL.shape[1] > self.context:
            raise ShapeError("ids", got=tuple(ids_BL.shape), expected=("B", f"L up to {self.context}"))
        _require_valid(valid_BL, ids_BL.shape)
        x_BLD = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        return self.head(self.stack(x_BLD, ids_BL, valid_BL))


class TinyNet(nn.Module):
    """The same for numbers: x [B, L, width] -> y [B, L, out], for regression or classes of features.

    num_heads 0: no attention, and no positions: every token by itself. project: False hands x itself to the blocks
    (width must be dim), so that a router reads the features as they are.
    """

    def __init__(
        self,
        width: int,
        out: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn: FeedForwardOf,
        *,
        context: int = 256,
        project: bool = True,
        checkpoint: bool = False,
        needs_attention: bool = False,
    ):
        super().__init__()
        if not project and width != dim:
            raise ConfigError("width", got=width, expected=f"dim = {dim} without a projection")
        self.width, self.context = width, context
        self.project = nn.Linear(width, dim) if project else None
        self.positions = nn.Embedding(context, dim) if num_heads else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.1)
        self.stack = Stack(dim, num_layers, num_heads, ffn, checkpoint=checkpoint, needs_attention=needs_attention)
        self.head = nn.Linear(dim, out)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        """Raises: ShapeError."""
        if x_BLD.ndim != 3 or x_BLD.shape[2] != self.width:
            raise ShapeError("x", got=tuple(x_BLD.shape), expected=("B", "L", self.width))
        _require_valid(valid_BL, x_BLD.shape[:2])
        x_BLD = x_BLD if self.project is None else self.project(x_BLD)
        if self.positions is not None:
            if x_BLD.shape[1] > self.context:
                raise ShapeError("x", got=tuple(x_BLD.shape), expected=("B", f"L up to {self.context}", self.width))
            x_BLD = x_BLD + self.positions.weight[: x_BLD.shape[1]]
        return self.head(self.stack(x_BLD, None, valid_BL))


def _require_valid(valid_BL: Tensor | None, shape: torch.Size) -> None:
    if valid_BL is not None and valid_BL.shape != shape:
        raise ShapeError("valid", got=tuple(valid_BL.shape), expected=tuple(shape))
