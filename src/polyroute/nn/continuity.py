"""Objectives that make neighbours share experts: the next token, a chunk of tokens, similar samples, one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.losses import mean_shares, shares_TE
from polyroute.nn.routing import Routing


def _logits(routing: Routing, who: str) -> Tensor:
    if isinstance(routing.logits_TE, tuple):
        raise ConfigError("scorer", got="ProductKeys", expected=f"one logit for each expert, for {who}")
    return routing.logits_TE.float()


@dataclass(frozen=True)
class ActivationLocality:
    """Consecutive tokens of a sequence use the same experts: cross entropy of sigmoid(sharpness x logit) with the next.

    The logits are those before the ReLU. detach: the next token is a fixed target (the published code passes the
    gradient through both). Source: BlockFFN (arXiv:2507.08771).
    """

    coef: float = 2e-3
    sharpness: float = 100.0
    detach: bool = False
    name: ClassVar[str] = "activation_locality"

    def build(self, dim: int, num_experts: int) -> ActivationLocality:
        if not self.sharpness > 0:
            raise ConfigError("activation_locality.sharpness", got=self.sharpness, expected="a number above 0")
        return self

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        logits = _logits(routing, "ActivationLocality")
        if routing.open_E is not None:
            logits = logits[:, routing.open_E]
        z_BLE = self.sharpness * logits.reshape(*routing.shape, logits.shape[1])
        here, after = z_BLE[:, :-1], z_BLE[:, 1:].sigmoid()
        entropy_BL = (F.softplus(here) - here * (after.detach() if self.detach else after)).mean(-1)
        if routing.valid_T is None:
            return entropy_BL.sum() / max(entropy_BL.numel(), 1)
        valid = routing.valid_T.reshape(routing.shape)
        both = valid[:, :-1] & valid[:, 1:]
        return torch.where(both, entropy_BL, 0.0).sum() / both.sum().clamp(min=1)


@dataclass(frozen=True)
class Adaptive:
    """Multiply a coefficient by the ratio of an objective's means in the last two windows of steps.

    Nothing for `warmup` steps, then each `every` steps: a ratio of at most 1 as it is, above 1 at least `least`.
    Source: BlockFFN (arXiv:2507.08771).
    """

    warmup: int = 1000
    every: int = 100
    least: float = 1.025

    def factor(self, last: float, before: float) -> float:
        """What the coefficient is multiplied by."""
        ratio = last / before if before > 0 else 1.0
        return ratio if ratio <= 1 else max(self.least, ratio)


@dataclass(frozen=True)
class ChunkSparsity:
    """Few experts for each chunk of tokens: the mean chance, over experts, that some token of the chunk uses it.

    1 - product over the chunk of (1 - p), p = each token's share for the expert. on: "logits" takes shares of
    ReLU(logits), for ReLU routers; "scores" those of the normalised scores. Chunks do not cross sequences; the last of
    a sequence may be shorter. schedule: of the coefficient, None keeps it. No load balance beside it (it hurt).
    Source: BlockFFN (arXiv:2507.08771).
    """

    coef: float = 5e-2
    chunk: int = 64
    schedule: Adaptive | None = Adaptive()
    on: str = "logits"

    def build(self, dim: int, num_experts: int) -> ChunkUnion:
        if self.chunk < 1:
            raise ConfigError("chunk_sparsity.chunk", got=self.chunk, expected="1 token or more")
        if self.on not in ("logits", "scores"):
            raise ConfigError("chunk_sparsity.on", got=self.on, expected='"logits" or "scores"')
        return ChunkUnion(self)


class ChunkUnion(nn.Module):
    """See ChunkSparsity. coef moves with the schedule; it is saved with the layer."""

    name = "chunk_sparsity"

    def __init__(self, config: ChunkSparsity):
        super().__init__()
        self.config, self.coef = config, config.coef
        self.step, self.before = 0, 0.0
        self._total: Tensor | float = 0.0  # of this window
        self._count = 0

    def forward(self, routing: Routing, layer: Any) -> Tensor:
        if self.config.on == "logits":
            active = _logits(routing, "ChunkSparsity").relu()
            p_TE = active / active.sum(-1, keepdim=True).clamp(min=1e-12)
        else:
            p_TE = shares_TE(routing)
        loss = chunk_union(p_TE, self.config.chunk, routing.shape, routing.valid_T)
        if self.config.schedule is not None and getattr(layer, "training", True):
            self._total = self._total + loss.detach()
            self._count += 1
        return loss

    def end_step(self) -> None:
        """Count an optimizer step; at the end of a window move the coefficient."""
        schedule = self.config.schedule
        if schedule is None:
            return
        self.step += 1
        if self.step % schedule.every or not self._count:
            return
        mean = float(self._total) / self._count
        if self.step > schedule.warmup:
            self.coef *= schedule.factor(mean, self.before)
        self.before, self._total, self._count = mean, 0.0, 0

    def get_extra_state(self) -> dict[str, float]:
        state = {"coef": self.coef, "step": self.step, "before": self.before}
        return {**state, "total": float(self._total), "count": self._count}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.coef, self.before, self._total = float(state["coef"]), float(state["before"]), float(state["total"])
        self.step, self._count = int(state["step"]), int(state["count"])


def chunk_union(p_TE: Tensor, chunk: int, shape: tuple[int, int], valid_T: Tensor | None = None) -> Tensor:
    """Mean over chunks and experts of 1 - product over the chunk's tokens of (1 - p); 0 when there are none.

    1 - p is taken as 1 - (1 - 1e-5) p, so that a certain choice keeps a finite gradient.
    """
    (num_sequences, length), num_experts = shape, p_TE.shape[1]
    real_T = p_TE.new_ones(len(p_TE), dtype=torch.bool) if valid_T is None else valid_T
    p_BLE = torch.where(real_T[:, None], p_TE, 0.0).reshape(num_sequences, length, num_experts)
    short = -length % chunk
    unused = torch.log1p(-(1 - 1e-5) * F.pad(p_BLE, (0, 0, 0, short)))
    union = -torch.expm1(unused.reshape(num_sequences, (length + short) // chunk, chunk, num_experts).sum(2))
    real = F.pad(real_T.reshape(num_sequences, length), (0, short)).reshape(*union.shape[:2], chunk).any(-1)
    return (union.sum(-1) * real).sum() / (real.sum().clamp(min=1) * num_experts)


def manifold_loss(routes_NR: Tensor, neighbours_NKR: Tensor, weights_NK: Tensor) -> Tensor:
    """Mean over samples of the weighted squared distance to the stored routes of their neighbours; gradient to routes.

    routes: normalised scores of the layers that train, side by side. neighbours: those of successful similar samples,
    as stored. weights: of each neighbour, rows summing to 1. Source: RoMA (arXiv:2511.07419).
    """
    if neighbours_NKR.shape != (*weights_NK.shape, routes_NR.shape[-1]) or len(weights_NK) != len(routes_NR):
        expected = (len(routes_NR), *weights_NK.shape[1:], routes_NR.shape[-1])
        raise ShapeError("neighbours", got=tuple(neighbours_NKR.shape), expected=expected)
    distance_NK = (routes_NR.float()[:, None] - neighbours_NKR.detach().float()).square().sum(-1)
    return (weights_NK.detach().float() * distance_NK).sum() / max(len(routes_NR), 1)


def task_locality(probs_E: Tensor, moved_E: Tensor, served_E: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
    """Sum over the experts that served of probability x (how far they had to move - baseline); gradient to probs."""
    cost_E = torch.where(served_E, moved_E.detach().float() - baseline, 0.0)
    return (probs_E.float() * cost_E).sum()


@dataclass(frozen=True)
class TaskLocality:
    """Do not give a task to an expert that has to move far for it.

    Tell the built objective with `moved(norms_E)` how far each expert's weights moved for the routing just made; it
    then costs each expert that served its mean probability x (norm - baseline), once. baseline: "ema", a running mean
    of the norms, or None, with which the loss only ever pushes the winner down and routing cycles (published form).
    Source: Li et al. 2024 (arXiv:2406.16437); the baseline is inferred.
    """

    coef: float = 1.0
    baseline: str | None = "ema"
    decay: float = 0.9

    def build(self, dim: int, num_experts: int) -> Movement:
        if self.baseline not in ("ema", None):
            raise ConfigError("task_locality.baseline", got=self.baseline, expected='"ema" or None')
        if not 0 <= self.decay < 1:
            raise ConfigError("task_locality.decay", got=self.decay, expected="a share in [0, 1)")
        return Movement(num_experts, self)


class Movement(nn.Module):
    """See TaskLocality. mean: the running mean of the norms, NaN before the first."""

    name = "task_locality"

    def __init__(self, num_experts: int, config: TaskLocality):
        super().__init__()
        self.coef, self.config, self.num_experts = config.coef, config, num_experts
        self.register_buffer("mean", torch.tensor(torch.nan))
        self._moved_E: Tensor | None = None

    def moved(self, norms_E: Tensor) -> None:
        """How far each expert moved for the routing just made, >= 0."""
        if norms_E.shape != (self.num_experts,):
            raise ShapeError("norms", got=tuple(norms_E.shape), expected=(self.num_experts,))
        self._moved_E = norms_E.detach().float()

    def forward(self, routing: Routing, layer: Any) -> Tensor:
        probs_E = mean_shares(routing)[0]
        if self._moved_E is None:
            return probs_E.sum() * 0.0
        moved_E, self._moved_E = self._moved_E, None
        served_E = routing.count_E > 0
        cost = torch.where(served_E, moved_E, 0.0).sum() / served_E.sum().clamp(min=1)
        if self.config.baseline is None:
            return task_locality(probs_E, moved_E, served_E)
        baseline = torch.where(self.mean.isnan(), cost, self.mean)
        self.mean.copy_(baseline.lerp(cost, 1 - self.config.decay))
        return task_locality(probs_E, moved_E, served_E, baseline)
