"""Part 2, the score of each expert: r [T, R] -> logits [T, E], always in fp32.

A scorer is called as `scorer(r_TR, valid_T)`: one that reads statistics of the batch leaves padding out of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.routing import KeepsFp32, require_size


def _fp32(x: Tensor) -> torch.amp.autocast_mode.autocast:
    return torch.autocast(x.device.type, enabled=False)


@dataclass(frozen=True)
class Linear:
    """One row of weights for each expert. std: of the initial weights; None takes 1 / sqrt(R), 0 starts flat."""

    bias: bool = False
    std: float | None = None

    def build(self, dim: int, num_experts: int) -> LinearScorer:
        if self.std is not None and not self.std >= 0:
            raise ConfigError("scorer.std", got=self.std, expected="a number of 0 or more")
        return LinearScorer(dim, num_experts, bias=self.bias, std=self.std)


class LinearScorer(nn.Module):
    """weight [E, R], read by losses that couple routers and experts."""

    def __init__(self, dim: int, num_experts: int, *, bias: bool = False, std: float | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None
        nn.init.normal_(self.weight, std=dim**-0.5 if std is None else std)

    def forward(self, r_TR: Tensor, valid_T: Tensor | None = None) -> Tensor:
        with _fp32(r_TR):
            return F.linear(r_TR.float(), self.weight.float(), None if self.bias is None else self.bias.float())


@dataclass(frozen=True)
class MLP:
    """Linear, tanh or ReLU, linear."""

    hidden: int | None = None  # None: as many as there are experts
    activation: str = "tanh"

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return MLPScorer(dim, num_experts, num_experts if self.hidden is None else self.hidden, self.activation)


class MLPScorer(nn.Module):
    def __init__(self, dim: int, num_experts: int, hidden: int, activation: str):
        super().__init__()
        known = {"tanh": torch.tanh, "relu": torch.relu, "silu": F.silu}
        if activation not in known:
            raise ConfigError("scorer.activation", got=activation, expected=f"one of {', '.join(known)}")
        require_size("scorer.hidden", hidden)
        self.activation = known[activation]
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, num_experts, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.second.weight

    def forward(self, r_TR: Tensor, valid_T: Tensor | None = None) -> Tensor:
        with _fp32(r_TR):
            h = self.activation(F.linear(r_TR.float(), self.first.weight.float(), self.first.bias.float()))
            return F.linear(h, self.second.weight.float())


@dataclass(frozen=True)
class Cosine:
    """Cosine of a projected state with one vector for each expert, over a learned temperature.

    Source: Chi et al. 2022, On the representation collapse of sparse mixture of experts (arXiv:2204.09179).
    """

    width: int | None = None  # of the projection; None: no projection
    temperature: float = 0.07

    def build(self, dim: int, num_experts: int) -> nn.Module:
        return CosineScorer(dim, num_experts, self.width, self.temperature)


class CosineScorer(nn.Module):
    def __init__(self, dim: int, num_experts: int, width: int | None, temperature: float):
        super().__init__()
        if not temperature > 0:
            raise ConfigError("scorer.temperature", got=temperature, expected="a number above 0")
        if width is not None:
            require_size("scorer.width", width)
        self.project = nn.Linear(dim, width, bias=False) if width else None
        self.weight = nn.Parameter(torch.randn(num_experts, width or dim))
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    def forward(self, r_TR: Tensor, valid_T: Tensor | None = None) -> Tensor:
        with _fp32(r_TR):
            r = r_TR.float() if self.project is None else F.linear(r_TR.float(), self.project.weight.float())
            cosine = F.linear(F.normalize(r, dim=-1), F.normalize(self.weight.float(), dim=-1))
            return cosine * (-self.log_temperature.float()).exp()


@dataclass(frozen=True)
class ProductKeys:
    """Expert (i, j) of rows x columns scores row_i + column_j: 2 sqrt(E) scores stand for E experts.

    batch_norm: normalise both logit vectors over the batch, without weights; a balance that costs nothing.
    Returns (row [T, rows], column [T, columns]). Source: product keys, Lample et al. 2019 (arXiv:1907.05242);
    OmniMoE for batch_norm, which its text does not mention (inferred from its code).
    """

    rows: int
    columns: int
    batch_norm: bool = False

    def build(self, dim: int, num_experts: int) -> nn.Module:
        require_size("scorer.rows", self.rows)
        if self.rows * self.columns != num_experts:
            got = f"{self.rows} x {self.columns}"
            raise ConfigError("scorer", got=got, expected=f"rows x columns = {num_experts}, the number of experts")
        return ProductKeyScorer(dim, self.rows, self.columns, self.batch_norm)


class ProductKeyScorer(nn.Module):
    def __init__(self, dim: int, rows: int, columns: int, batch_norm: bool):
        super().__init__()
        self.row, self.column = LinearScorer(dim, rows), LinearScorer(dim, columns)
        self.row_norm = _BatchNorm(rows, affine=False) if batch_norm else None
        self.column_norm = _BatchNorm(columns, affine=False) if batch_norm else None

    def forward(self, r_TR: Tensor, valid_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        row, column = self.row(r_TR), self.column(r_TR)
        if self.row_norm is not None:
            row, column = _normed(self.row_norm, row, valid_T), _normed(self.column_norm, column, valid_T)
        return row, column


class _BatchNorm(KeepsFp32, nn.BatchNorm1d):
    """Its statistics are of fp32 scores."""


def _normed(norm: nn.BatchNorm1d, z_TE: Tensor, valid_T: Tensor | None) -> Tensor:
    """Batch norm whose statistics leave padding out."""
    if valid_T is None or not norm.training:
        return norm(z_TE) if len(z_TE) > 1 or not norm.training else z_TE
    out = torch.zeros_like(z_TE)
    out[valid_T] = norm(z_TE[valid_T])
    return out
