"""The contract inside a network: what a router may look at, and what every router returns.

Shape letters of the whole package: B sequences, L tokens each, T = B * L tokens, D model width, F expert width,
E experts, K experts a token, N (token, expert) pairs, R router width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError


@dataclass(slots=True)
class TokenContext:
    """Everything a router of one layer may look at, and where it leaves its state for the next layer."""

    x_TD: Tensor  # what the experts read
    shape: tuple[int, int]  # (B, L)
    pre_attention_TD: Tensor | None = None  # the residual stream before this block's attention
    attention_BLL: Tensor | None = None  # weights of this block's attention, mean over heads, rows sum to 1
    carry_TR: Tensor | None = None  # state of the last layer's router, replaced by this layer's
    token_ids_T: Tensor | None = None
    valid_T: Tensor | None = None  # bool, False is padding; None: all are real
    layer: int = 0
    step: int = 0  # optimizer steps done
    training: bool = False
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return self.x_TD.shape[0]

    def rows(self, values_T: Tensor) -> Tensor:
        """Values of the tokens [T, ...] as sequences [B, L, ...]."""
        return values_T.reshape(*self.shape, *values_T.shape[1:])


@dataclass(slots=True)
class Pairs:
    """Which expert each token goes to, tokens in order. K: experts of every token, None when it varies."""

    tok_N: Tensor  # int64, ascending
    exp_N: Tensor  # int64
    K: int | None = None

    @classmethod
    def of_index(cls, index_TK: Tensor) -> Pairs:
        """Pairs of a fixed number of experts for each token."""
        num_tokens, k = index_TK.shape
        tok_N = torch.arange(num_tokens, device=index_TK.device).repeat_interleave(k)
        return cls(tok_N, index_TK.reshape(-1), k)

    @classmethod
    def of_mask(cls, mask_TE: Tensor) -> Pairs:
        """Pairs where the mask is True."""
        tok_N, exp_N = mask_TE.nonzero(as_tuple=True)
        return cls(tok_N, exp_N, None)

    def where(self, keep_T: Tensor) -> Pairs:
        """Without the pairs of tokens that are not kept; the number of experts then varies."""
        keep_N = keep_T[self.tok_N]
        return Pairs(self.tok_N[keep_N], self.exp_N[keep_N], None)


@dataclass(slots=True)
class Routing:
    """The result of every router. Losses, metrics and executors read this and nothing else."""

    tok_N: Tensor  # int64, token of each pair, ascending
    exp_N: Tensor  # int64, expert of each pair
    gate_N: Tensor  # fp32, weight of the expert's output
    K: int | None  # pairs of every token; None: it varies
    num_tokens: int  # T
    num_experts: int  # E
    logits_TE: Tensor | tuple[Tensor, Tensor]  # fp32; (row, column) for product keys
    probs_TE: Tensor | None  # fp32, normalised scores before selection; None for product keys
    count_E: Tensor  # int64, pairs of each expert
    shape: tuple[int, int]  # (B, L)
    valid_T: Tensor | None = None
    carry_TR: Tensor | None = None
    open_E: Tensor | None = None  # bool, experts a candidate mask lets in; None: all

    def mask_TE(self) -> Tensor:
        """bool [T, E]: which experts each token uses."""
        mask = torch.zeros(self.num_tokens, self.num_experts, dtype=torch.bool, device=self.exp_N.device)
        mask[self.tok_N, self.exp_N] = True
        return mask

    def gates_TE(self) -> Tensor:
        """Gates as a dense matrix [T, E], 0 where an expert is not used. Passes gradients."""
        gates = self.gate_N.new_zeros(self.num_tokens, self.num_experts)
        return gates.index_put((self.tok_N, self.exp_N), self.gate_N, accumulate=True)

    def top1_T(self) -> Tensor:
        """The likeliest expert of each token [T], before selection."""
        if self.probs_TE is None:
            row, column = self.logits_TE
            return row.argmax(-1) * column.shape[-1] + column.argmax(-1)
        return self.probs_TE.argmax(-1)

    def num_valid(self) -> int:
        """Tokens that are not padding."""
        return self.num_tokens if self.valid_T is None else int(self.valid_T.sum())


@runtime_checkable
class Part(Protocol):
    """A part of a layer, described: a frozen dataclass. `build` gives the thing that runs."""

    def build(self, dim: int, num_experts: int) -> Any: ...


def built(name: str, part: Any, dim: int, num_experts: int) -> Any:
    """The thing that runs, of a part given as argument `name`. Raises: ConfigError for what is no part."""
    if isinstance(part, type) or not callable(getattr(part, "build", None)):
        got = f"the class {part.__name__}" if isinstance(part, type) else part
        raise ConfigError(name, got=got, expected="a part with build(dim, num_experts), as TopK(2)")
    return part.build(dim, num_experts)


def sequence_of(name: str, parts: Any) -> tuple[Any, ...]:
    """Parts given as argument `name`. Raises: ConfigError for a single one."""
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise ConfigError(name, got=parts, expected=f"several parts, as {name}=(part,)")
    return tuple(parts)


class KeepsFp32(nn.Module):
    """A module whose fp32 buffers stay so when a model is converted: in bf16 small steps and large counts are lost."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype == torch.float32:
                self._buffers[name] = buffer.to(now.device)
        return self


def in_recomputation() -> bool:
    """Whether this forward pass runs inside a backward pass (activation checkpointing): nothing is counted twice."""
    return torch._C._current_graph_task_id() != -1


def count_pairs(exp_N: Tensor, num_experts: int) -> Tensor:
    """Pairs of each expert [E], without waiting for the device."""
    if exp_N.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.bincount(exp_N, minlength=num_experts)
    return torch.zeros(num_experts, dtype=torch.int64, device=exp_N.device).scatter_add_(
        0, exp_N, torch.ones_like(exp_N)
    )


def require_shape(name: str, tensor: Tensor, expected: tuple[Any, ...]) -> None:
    """Raise ShapeError unless the shape matches; a name in `expected` stands for any size."""
    got = tuple(tensor.shape)
    fits = len(got) == len(expected) and all(isinstance(e, str) or g == e for g, e in zip(got, expected, strict=True))
    if not fits:
        raise ShapeError(name, got=got, expected=expected)


def require_mask(name: str, mask: Any, expected: tuple[Any, ...]) -> None:
    """Raise ConfigError unless it is a tensor of bool (0 and 1 would be read as places), ShapeError for its shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError(name, got=got, expected="a tensor of bool", hint="Pass attention_mask.bool().reshape(-1).")
    require_shape(name, mask, expected)


def require_finite(name: str, logits: Tensor | tuple[Tensor, ...]) -> None:
    """Raise ConfigError when a logit is not finite; on other devices than the CPU an assertion of the device."""
    if torch.compiler.is_compiling():
        return
    for part in logits if isinstance(logits, tuple) else (logits,):
        total = part.detach().sum()
        if total.device.type == "cpu":
            if not bool(torch.isfinite(total)) and not bool(torch.isfinite(part).all()):  # a sum may overflow
                raise ConfigError(
                    name,
                    got="NaN or infinity",
                    expected="finite numbers",
                    hint="Look at the layer's input and weights.",
                )
        else:
            torch._assert_async(torch.isfinite(total))


def require_size(name: str, size: Any, *, least: int = 1) -> None:
    """Raise ConfigError unless `size` is a whole number of at least `least`."""
    if not isinstance(size, Integral) or isinstance(size, bool) or size < least:
        raise ConfigError(name, got=size, expected=f"a whole number, {least} or more")


def require_k(k: int, num_experts: int, *, name: str = "select.k") -> None:
    """Raise ConfigError unless 1 <= k <= num_experts."""
    if not isinstance(k, Integral) or not 1 <= k <= num_experts:
        raise ConfigError(name, got=k, expected=f"1 to {num_experts}, the number of experts")
