"""The weights of a layer's experts, and the dense network beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyroute.nn.activations import activation
from polyroute.nn.dispatch import EXECUTORS, Weights, check, executor
from polyroute.nn.routing import Routing, TokenContext, require_size


class Experts(nn.Module):
    """E feed-forward networks as two tensors: w1 [E, G, D], w2 [E, F, O]; G = 2 F where the activation is gated.

    One object may serve several layers (`MoE(pool=...)`): its parameters then exist, train and are saved once.
    """

    executors = EXECUTORS

    def __init__(self, dim: int, width: int, num_experts: int, *, act: str = "swiglu", out: int | None = None):
        super().__init__()
        for name, size in (("dim", dim), ("width", width), ("num_experts", num_experts)):
            require_size(name, size)
        if out is not None:
            require_size("out", out)
        self.act = activation(act)
        self.w1_EGD = nn.Parameter(torch.empty(num_experts, width * (2 if self.act.gated else 1), dim))
        self.w2_EFO = nn.Parameter(torch.empty(num_experts, width, out or dim))
        nn.init.normal_(self.w1_EGD, std=dim**-0.5)
        nn.init.normal_(self.w2_EFO, std=width**-0.5)

    @property
    def num_experts(self) -> int:
        return self.w1_EGD.shape[0]

    def weights(self) -> Weights:
        return Weights(self.w1_EGD, self.w2_EFO, self.act)

    def forward(self, x_TD: Tensor, routing: Routing, choose: str = "auto") -> Tensor:
        """y [T, O]: each token's gated sum over its experts. choose: the executor, or "auto"."""
        x_TD, weights = self.cast(x_TD)
        with torch.autocast(x_TD.device.type, enabled=False):
            return executor(choose, x_TD, routing, weights)(x_TD, routing, weights)

    def cast(self, x_TD: Tensor) -> tuple[Tensor, Weights]:
        """x and the weights in autocast's dtype where that is on, otherwise as they are."""
        weights = self.weights()
        if not torch.is_autocast_enabled(x_TD.device.type):
            return x_TD, weights
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        return x_TD.to(dtype), Weights(weights.w1_EGD.to(dtype), weights.w2_EFO.to(dtype), self.act)

    def check(self, x_TD: Tensor) -> None:
        """Raise ShapeError or ConfigError when these experts cannot read x."""
        if not torch.is_autocast_enabled(x_TD.device.type):
            check(x_TD, self.weights())

    def extra_repr(self) -> str:
        e, _, d = self.w1_EGD.shape
        return f"experts={e}, dim={d}, width={self.w2_EFO.shape[1]}, out={self.w2_EFO.shape[2]}, act={self.act.name}"


class FeedForward(nn.Module):
    """A dense feed-forward network of the same form as one expert: the shared expert, and the baseline."""

    def __init__(self, dim: int, width: int, *, act: str = "swiglu", out: int | None = None):
        super().__init__()
        for name, size in (("dim", dim), ("width", width), ("out", dim if out is None else out)):
            require_size(name, size)
        self.act = activation(act)
        self.w1 = nn.Linear(dim, width * (2 if self.act.gated else 1), bias=False)
        self.w2 = nn.Linear(width, out or dim, bias=False)

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        """context: not read; the signature is that of MoE."""
        return self.w2(self.act.forward(self.w1(x)))


class GatedFeedForward(FeedForward):
    """A dense network each token takes a learned share of: sigmoid(gate(x)) times it. For MoE(shared=...).

    Source: Qwen2 (arXiv:2407.10671), the shared expert of its mixture-of-experts models.
    """

    def __init__(self, dim: int, width: int, *, act: str = "swiglu", out: int | None = None):
        super().__init__(dim, width, act=act, out=out)
        self.gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        return torch.sigmoid(self.gate(x)) * super().forward(x)
