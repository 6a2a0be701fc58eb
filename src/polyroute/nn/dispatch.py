"""Part 6, tokens to experts and back: every executor computes the same y [T, O] and the same gradients.

y_t = sum over the pairs of token t of gate x expert(x_t), with w1 [E, G, D] and w2 [E, F, O]; G = 2 F for gated
activations. `dense` runs every expert on every token: the oracle of the others. Padding has no pairs, so it costs
nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.activations import Activation
from polyroute.nn.routing import Routing


class Weights(NamedTuple):
    """The experts of one layer."""

    w1_EGD: Tensor
    w2_EFO: Tensor
    act: Activation


class Sorted(NamedTuple):
    """Pairs in the order of their experts."""

    tok_N: Tensor  # token of each row
    order_N: Tensor  # place of each row among the pairs
    place_N: Tensor  # row of each pair
    count_E: Tensor


Executor = Callable[[Tensor, Routing, Weights], Tensor]


def sort_pairs(routing: Routing) -> Sorted:
    """Group the pairs by expert, each group in the order of tokens; a radix sort on the CPU."""
    exp_N = routing.exp_N
    if exp_N.device.type == "cpu" and not torch.compiler.is_compiling():
        small = np.uint8 if routing.num_experts <= 256 else np.uint16 if routing.num_experts <= 65536 else np.int64
        order_N = torch.from_numpy(np.argsort(exp_N.numpy().astype(small), kind="stable"))
    else:
        order_N = exp_N.argsort(stable=True)
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    return Sorted(routing.tok_N[order_N], order_N, place_N, routing.count_E)


def dense(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """Every expert on every token, weighted by the gates: slow, plain autograd, the oracle."""
    h_TEG = torch.einsum("td,egd->teg", x_TD, weights.w1_EGD)
    y_TEO = torch.einsum("tef,efo->teo", weights.act.forward(h_TEG), weights.w2_EFO)
    return torch.einsum("teo,te->to", y_TEO.float(), routing.gates_TE()).to(x_TD.dtype)


def sorted_loop(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """One expert after the other on its own rows, while they are in the cache; nothing but h is kept for backward."""
    rows = sort_pairs(routing)
    return _SortedLoop.apply(x_TD, routing.gate_N, weights.w1_EGD, weights.w2_EFO, rows, routing, weights.act)


class _SortedLoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, gate_N, w1_EGD, w2_EFO, rows, routing, act):
        num_pairs = len(rows.tok_N)
        h_NG = x_TD.new_empty(num_pairs, w1_EGD.shape[1])
        y_NO = x_TD.new_empty(num_pairs, w2_EFO.shape[2])
        for e, s, t in _runs(rows.count_E):
            h = h_NG[s:t]
            torch.mm(x_TD.index_select(0, rows.tok_N[s:t]), w1_EGD[e].T, out=h)
            torch.mm(act.forward(h), w2_EFO[e], out=y_NO[s:t])
        ctx.save_for_backward(x_TD, gate_N, w1_EGD, w2_EFO, h_NG, rows.tok_N, rows.order_N, rows.place_N, rows.count_E)
        ctx.routing_shape, ctx.act = (routing.num_tokens, routing.K, routing.tok_N), act
        return sum_pairs(y_NO, rows.place_N, gate_N, *ctx.routing_shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TO):
        x_TD, gate_N, w1_EGD, w2_EFO, h_NG, tok_N, order_N, place_N, count_E = ctx.saved_tensors
        grad_TO = grad_TO.contiguous().to(x_TD.dtype)
        need_x, need_gate, need_w1, need_w2 = ctx.needs_input_grad[:4]
        gate_sorted = gate_N[order_N].to(x_TD.dtype)[:, None]
        grad_w1 = torch.zeros_like(w1_EGD) if need_w1 else None
        grad_w2 = torch.zeros_like(w2_EFO) if need_w2 else None
        grad_x_ND = x_TD.new_empty(len(tok_N), x_TD.shape[1]) if need_x else None
        grad_gate = torch.empty(len(tok_N), dtype=torch.float32) if need_gate else None
        for e, s, t in _runs(count_E):
            tokens = tok_N[s:t]
            grad_y = grad_TO.index_select(0, tokens)
            grad_a = grad_y @ w2_EFO[e].T
            gate = gate_sorted[s:t]
            grad_h, a = ctx.act.backward(h_NG[s:t], grad_a * gate)
            if need_gate:
                grad_gate[s:t] = torch.linalg.vecdot(grad_a, a)
            if need_w2:
                torch.mm(a.mul_(gate).T, grad_y, out=grad_w2[e])
            if need_w1:
                torch.mm(grad_h.T, x_TD.index_select(0, tokens), out=grad_w1[e])
            if need_x:
                torch.mm(grad_h, w1_EGD[e], out=grad_x_ND[s:t])
        grad_x = sum_pairs(grad_x_ND, place_N, None, *ctx.routing_shape) if need_x else None
        return grad_x, grad_gate[place_N] if need_gate else None, grad_w1, grad_w2, None, None, None


def _runs(count_E: Tensor):
    """(expert, first row, past the last) of every expert that has rows."""
    end = 0
    for e, count in enumerate(count_E.tolist()):
        if count:
            yield e, end, end + count
            end += count


def sum_pairs(y_NO: Tensor, place_N: Tensor, gate_N: Tensor | None, num_tokens: int, k: int | None, tok_N: Tensor):
    """The (weighted) sum of each token's rows of y: one fused pass, in a fixed order. Returns [T, O]."""
    if y_NO.dtype != torch.float32:
        y = y_NO[place_N].float()
        y = y if gate_N is None else y * gate_N[:, None]
        return y.new_zeros(num_tokens, y.shape[1]).index_add_(0, tok_N, y).to(y_NO.dtype)
    if k is not None:
        weights = None if gate_N is None else gate_N.reshape(num_tokens, k)
        return F.embedding_bag(place_N.reshape(num_tokens, k), y_NO, mode="sum", per_sample_weights=weights)
    starts = torch.searchsorted(tok_N, torch.arange(num_tokens))
    return F.embedding_bag(place_N, y_NO, starts, mode="sum", per_sample_weights=gate_N)


def grouped(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """Grouped matrix products over the sorted rows: one call for all experts, no wait for the counts; for GPUs."""
    rows = sort_pairs(routing)
    ends = rows.count_E.cumsum(0).to(torch.int32)
    h_NG = torch._grouped_mm(x_TD[rows.tok_N], weights.w1_EGD.transpose(1, 2), offs=ends)
    y_NO = _Contiguous.apply(torch._grouped_mm(weights.act.forward(h_NG), weights.w2_EFO, offs=ends))
    weighted = y_NO.float() * routing.gate_N[rows.order_N][:, None]
    return weighted.new_zeros(len(x_TD), y_NO.shape[1]).index_add(0, rows.tok_N, weighted).to(x_TD.dtype)


class _Contiguous(torch.autograd.Function):
    """The identity, with a contiguous gradient: grouped products refuse an expanded one."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous()


def padded(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """One batched product over groups filled up to the largest: for few experts that are near balance."""
    rows = sort_pairs(routing)
    most = int(rows.count_E.max()) if len(rows.tok_N) else 0
    begin_E = rows.count_E.cumsum(0) - rows.count_E
    exp_N = routing.exp_N[rows.order_N]
    slot_N = exp_N * most + torch.arange(len(exp_N), device=exp_N.device) - begin_E[exp_N]
    num_experts = routing.num_experts
    filled = x_TD.new_zeros(num_experts * most, x_TD.shape[1]).index_copy(0, slot_N, x_TD[rows.tok_N])
    h = torch.bmm(filled.reshape(num_experts, most, -1), weights.w1_EGD.transpose(1, 2))
    y = torch.bmm(weights.act.forward(h), weights.w2_EFO).reshape(num_experts * most, -1)[slot_N]
    weighted = y.float() * routing.gate_N[rows.order_N][:, None]
    return weighted.new_zeros(len(x_TD), y.shape[1]).index_add(0, rows.tok_N, weighted).to(x_TD.dtype)


EXECUTORS: dict[str, Executor] = {"dense": dense, "sorted_loop": sorted_loop, "grouped": grouped, "padded": padded}


def executor(name: str, x_TD: Tensor, routing: Routing, weights: Weights) -> Executor:
    """The executor of this name, or for "auto" the fastest for this device, after the shapes are checked.

    Raises: ShapeError, ConfigError (mixed dtypes), UnknownNameError.
    """
    num_experts, _, dim = weights.w1_EGD.shape
    if x_TD.ndim != 2 or x_TD.shape[1] != dim:
        raise ShapeError("x", got=tuple(x_TD.shape), expected=("T", dim))
    if routing.num_experts != num_experts:
        raise ShapeError("routing.count_E", got=(routing.num_experts,), expected=(num_experts,))
    if not x_TD.dtype == weights.w1_EGD.dtype == weights.w2_EFO.dtype:
        got = f"{x_TD.dtype}, {weights.w1_EGD.dtype}, {weights.w2_EFO.dtype}"
        raise ConfigError("x, w1, w2", got=got, expected="one dtype")
    if name != "auto":
        if name not in EXECUTORS:
            raise UnknownNameError("executor", name, EXECUTORS)
        return EXECUTORS[name]
    if torch.compiler.is_compiling() or x_TD.device.type == "cuda":
        return grouped if _grouped_fits(weights) else padded
    return sorted_loop


def _grouped_fits(weights: Weights) -> bool:
    """Grouped products want rows of a multiple of 16 bytes."""
    size = weights.w1_EGD.element_size()
    return all(width * size % 16 == 0 for width in (*weights.w1_EGD.shape[1:], *weights.w2_EFO.shape[1:]))
