"""What happens between an expert's two matrices, with its gradient in closed form so that nothing need be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from polyroute.errors import UnknownNameError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Activation:
    """h [n, G] -> a [n, F]. gated: G = 2 F, the first half is the gate; else G = F.

    forward(h) gives a. backward(h, grad_a) gives (grad_h [n, G], a).
    """

    name: str
    gated: bool
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Pair]


def _gated(name: str, act: Callable[[Tensor], Tensor], act_backward: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    def forward(h: Tensor) -> Tensor:
        gate, up = h.chunk(2, dim=-1)
        return act(gate) * up

    def backward(h: Tensor, grad_a: Tensor) -> Pair:
        gate, up = h.chunk(2, dim=-1)
        active = act(gate)
        grad_h = torch.empty_like(h)
        grad_gate, grad_up = grad_h.chunk(2, dim=-1)
        torch.mul(grad_a, active, out=grad_up)
        grad_gate.copy_(act_backward(grad_a * up, gate))
        return grad_h, active.mul_(up)

    return Activation(name, True, forward, backward)


def _plain(name: str, act: Callable[[Tensor], Tensor], act_backward: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    return Activation(name, False, act, lambda h, grad_a: (act_backward(grad_a, h), act(h)))


def _relu_backward(grad: Tensor, h: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, h, 0)


_silu = (F.silu, torch.ops.aten.silu_backward)
_relu = (F.relu, _relu_backward)
_gelu = (F.gelu, torch.ops.aten.gelu_backward)

ACTIVATIONS = {
    made.name: made
    for made in (
        _gated("swiglu", *_silu),
        _gated("reglu", *_relu),
        _gated("geglu", *_gelu),
        _plain("silu", *_silu),
        _plain("relu", *_relu),
        _plain("gelu", *_gelu),
        _plain("identity", lambda h: h.clone(), lambda grad, h: grad.clone()),
    )
}


def activation(name: str) -> Activation:
    """The activation of this name. Raises: UnknownNameError."""
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
