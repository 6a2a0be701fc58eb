"""Part 3, logits -> normalised scores [T, E], and the modifiers before and after it.

A modifier is called as `modifier(z_TE, ctx, r_TR)`; those with `on = "logits"` change what is normalised, those with
`on = "choice"` change only who is chosen, never the gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.routing import KeepsFp32, Routing, TokenContext, require_size


def _require_width(name: str, width: float) -> None:
    if not 0.0 <= width < math.inf:
        raise ConfigError(name, got=width, expected="a number of 0 or more")


@dataclass(frozen=True)
class Softmax:
    """Scores that share one unit of mass."""

    def build(self, dim: int, num_experts: int) -> Softmax:
        return self

    def __call__(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        return logits_TE.softmax(-1)


@dataclass(frozen=True)
class Sigmoid:
    """Each expert's score for itself. Source: DeepSeek-V3 (arXiv:2412.19437)."""

    def build(self, dim: int, num_experts: int) -> Sigmoid:
        return self

    def __call__(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        return logits_TE.sigmoid()


@dataclass(frozen=True)
class ReLURMS:
    """ReLU, then RMS norm over the experts with learned weights: zeros stay zero and are the selection.

    A row without any positive score stays zero. Source: BlockFFN (arXiv:2507.08771).
    """

    eps: float = 1e-6

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return _ReLURMS(num_experts, self.eps)


class _ReLURMS(nn.Module):
    def __init__(self, num_experts: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(num_experts)), eps

    def forward(self, logits_TE: Tensor, ctx: TokenContext) -> Tensor:
        return F.rms_norm(logits_TE.relu(), self.weight.shape, eps=self.eps) * self.weight.float()


@dataclass(frozen=True)
class ProductLogSoftmax:
    """Log-softmax of each axis of product keys; a pair's score is the sum. For ProductKeys and ProductTopK."""

    def build(self, dim: int, num_experts: int) -> ProductLogSoftmax:
        return self

    def __call__(self, logits: tuple[Tensor, Tensor], ctx: TokenContext) -> tuple[Tensor, Tensor]:
        return logits[0].log_softmax(-1), logits[1].log_softmax(-1)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the logits while training. learned: width softplus(r Wn), else the constant `std`.

    Source: noisy top-k, Shazeer et al. 2017 (arXiv:1701.06538).
    """

    std: float = 1.0
    learned: bool = False

    def build(self, dim: int, num_experts: int) -> nn.Module:
        _require_width("noise.std", self.std)
        return _Noise(dim, num_experts, self.std, self.learned)


class _Noise(nn.Module):
    """Keeps clean_TE, noisy_TE and std_TE of the last training pass, for the load loss."""

    on = "logits"

    def __init__(self, dim: int, num_experts: int, std: float, learned: bool):
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(num_experts, dim)) if learned else None
        self.clean_TE = self.noisy_TE = self.std_TE = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"clean_TE": None, "noisy_TE": None, "std_TE": None}  # copies start afresh

    def forward(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        if not ctx.training:
            return z_TE
        if self.weight is None:
            self.std_TE = torch.full_like(z_TE, self.std)
        else:
            self.std_TE = F.softplus(F.linear(r_TR.float(), self.weight.float()))
        self.clean_TE = z_TE
        self.noisy_TE = z_TE + torch.randn_like(z_TE) * self.std_TE
        return self.noisy_TE


@dataclass(frozen=True)
class UniformNoise:
    """Uniform noise in [0, width) while training. Source: Li et al. 2024 (arXiv:2406.16437).

    on: "logits", or "choice" to leave gates and losses alone. sequence: one draw for all tokens of a sequence.
    """

    width: float = 1.0
    on: str = "logits"
    sequence: bool = False

    def build(self, dim: int, num_experts: int) -> UniformNoise:
        if self.on not in ("choice", "logits"):
            raise ConfigError("uniform_noise.on", got=self.on, expected='"choice" or "logits"')
        _require_width("uniform_noise.width", self.width)
        return self

    def __call__(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        if not ctx.training:
            return z_TE
        if not self.sequence:
            return z_TE + self.width * torch.rand_like(z_TE)
        noise_BE = self.width * torch.rand(ctx.shape[0], z_TE.shape[-1], device=z_TE.device)
        return z_TE + noise_BE.repeat_interleave(ctx.shape[1], dim=0)


@dataclass(frozen=True)
class Delta:
    """One additive vector on the logits of all tokens, 0 until somebody sets it: see nn/rerouting.py."""

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return _Delta(num_experts)


class _Delta(nn.Module):
    on = "logits"

    def __init__(self, num_experts: int):
        super().__init__()
        self.delta_E = nn.Parameter(torch.zeros(num_experts), requires_grad=False)

    def forward(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        return z_TE + self.delta_E.to(z_TE.dtype)


@dataclass(frozen=True)
class Steer:
    """Raise the logits of given experts. Off until `experts` is set: see `steering` in nn/rerouting.py.

    mode: "soft" adds strength x the standard deviation of the token's logits; "hard" puts them level with its best.
    Source: Multilingual routing in mixture-of-experts (arXiv:2510.04694).
    """

    strength: float = 0.5
    mode: str = "soft"

    def build(self, dim: int, num_experts: int) -> nn.Module:
        if self.mode not in ("soft", "hard"):
            raise ConfigError("steer.mode", got=self.mode, expected='"soft" or "hard"')
        return _Steer(num_experts, self.strength, self.mode)


class _Steer(nn.Module):
    on = "logits"

    def __init__(self, num_experts: int, strength: float, mode: str):
        super().__init__()
        self.num_experts, self.strength, self.mode = num_experts, strength, mode
        self.experts: Sequence[int] = ()

    def forward(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        if not len(self.experts):
            return z_TE
        steered = z_TE.clone()
        chosen = torch.as_tensor(self.experts, device=z_TE.device)
        if self.mode == "soft":
            steered[:, chosen] += self.strength * z_TE.std(-1, keepdim=True)
        else:
            top = z_TE.max(-1, keepdim=True).values
            steered[:, chosen] = top + 1e-6 * torch.randn(len(z_TE), len(chosen), device=z_TE.device)
        return steered


@dataclass(frozen=True)
class CandidateMask:
    """Open the experts of other layers step by step: `local` ones first, then one after the other in a fixed order.

    local: (first, past the last) ids that are always open. Up to step `start` nothing else is, from step `end` on
    everything (where both are one step, from the next on). seed: of the order (the publication does not state one;
    inferred). Source: ReXMoE (arXiv:2510.17483).
    """

    local: tuple[int, int]
    start: int
    end: int
    seed: int = 0

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return _CandidateMask(num_experts, self)


class _CandidateMask(nn.Module):
    on = "logits"

    def __init__(self, num_experts: int, config: CandidateMask):
        super().__init__()
        low, high = config.local
        for end in (low, high):
            require_size("mask.local", end, least=0)
        if not 0 <= low < high <= num_experts:
            raise ConfigError("mask.local", got=config.local, expected=f"a range within 0 to {num_experts}")
        self.config, self.num_local = config, high - low
        others = torch.randperm(num_experts - self.num_local, generator=torch.Generator().manual_seed(config.seed))
        rank_E = torch.empty(num_experts, dtype=torch.int64)
        inside = torch.zeros(num_experts, dtype=torch.bool)
        inside[low:high] = True
        rank_E[inside] = torch.arange(self.num_local)
        rank_E[~inside] = self.num_local + others
        self.register_buffer("rank_E", rank_E)

    def open_E(self, step: int) -> Tensor:
        """bool [E]: who may be chosen at this step."""
        start, end = self.config.start, self.config.end
        share = min(max((step - start) / max(end - start, 1), 0.0), 1.0) if step >= start else 0.0
        return self.rank_E < int(self.num_local + share * (len(self.rank_E) - self.num_local))

    def forward(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        return z_TE.masked_fill(~self.open_E(ctx.step), -torch.inf)


@dataclass(frozen=True)
class SelectionBias:
    """Balance as a price, without a loss: after each step the bias of busy experts falls and that of idle ones rises.

    rate: the change a step. centre: take the mean of the change away so that biases cannot drift together.
    Call `end_step(model)` after each optimizer step. Source: Wang et al. 2024 (arXiv:2408.15664), DeepSeek-V3.
    """

    rate: float = 1e-3
    centre: bool = True

    def build(self, dim: int, num_experts: int) -> nn.Module:
        _require_width("selection_bias.rate", self.rate)
        return _SelectionBias(num_experts, self.rate, self.centre)


class _SelectionBias(KeepsFp32):
    """open_E: the experts that could be chosen in the last pass; those a mask closes are not idle, so none rises."""

    on = "choice"
    open_E: Tensor | None = None

    def __init__(self, num_experts: int, rate: float, centre: bool):
        super().__init__()
        self.rate, self.centre = rate, centre
        self.register_buffer("bias_E", torch.zeros(num_experts))
        self.register_buffer("load_E", torch.zeros(num_experts), persistent=False)

    def forward(self, choice_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        return choice_TE + self.bias_E

    @torch.no_grad()
    def observe(self, routing: Routing) -> None:
        self.load_E += routing.count_E
        self.open_E = routing.open_E

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the bias once an optimizer step, by the counts of all its micro-batches and ranks."""
        load = self.load_E.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load)
        among = slice(None) if self.open_E is None else self.open_E
        change = self.rate * (load[among].mean() - load[among]).sign()
        self.bias_E[among] += change - change.mean() if self.centre else change
        self.load_E.zero_()


@dataclass(frozen=True)
class Late:
    """Experts from id `first` on join late: `price` is taken from them at step `begin`, nothing `steps` later.

    The price falls in a straight line. on: "choice", which leaves gates alone, or "logits". Above the spread of what it
    is taken from, it keeps them out at first. Put in by `upcycle(exact_start=True)`; how to start exactly is not in the
    publication (inferred).
    """

    first: int
    begin: int = 0  # optimizer step
    steps: int = 1000
    price: float = 1.0
    on: str = "choice"

    def build(self, dim: int, num_experts: int) -> Late:
        if not 0 < self.first < num_experts:
            raise ConfigError("late.first", got=self.first, expected=f"above 0, below {num_experts}")
        if self.steps < 1:
            raise ConfigError("late.steps", got=self.steps, expected="1 or more")
        if self.on not in ("choice", "logits"):
            raise ConfigError("late.on", got=self.on, expected='"choice" or "logits"')
        return self

    def __call__(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        left = 1.0 - (ctx.step - self.begin) / self.steps
        if left <= 0:
            return z_TE
        return torch.cat([z_TE[:, : self.first], z_TE[:, self.first :] - self.price * left], -1)
