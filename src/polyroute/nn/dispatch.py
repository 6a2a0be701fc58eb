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
from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler, two seconds

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.activations import Activation
from polyroute.nn.crew import share
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


@_disable_dynamo  # its loop depends on the counts; a compiled model calls it as it is
def sorted_loop(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """One expert after the other on its own rows, while they are in the cache; nothing but h is kept for backward."""
    everywhere = 0 < len(routing.exp_N) == len(x_TD) * routing.num_experts
    if everywhere and x_TD.dtype == torch.float32:  # in less, a sum would be rounded with each expert
        return _EveryExpert.apply(x_TD, routing.gates_TE(), weights.w1_EGD, weights.w2_EFO, weights.act)
    rows = sort_pairs(routing)
    return _SortedLoop.apply(x_TD, routing.gate_N, weights.w1_EGD, weights.w2_EFO, rows, routing, weights.act)


class _SortedLoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD, gate_N, w1_EGD, w2_EFO, rows, routing, act):
        h_NG = x_TD.new_empty(len(rows.tok_N), w1_EGD.shape[1])
        y_NO = x_TD.new_empty(len(rows.tok_N), w2_EFO.shape[2])

        def expert(tokens, h, y, w1, w2):
            torch.mm(x_TD.index_select(0, tokens), w1.T, out=h)
            torch.mm(act.forward(h), w2, out=y)

        _for_each(expert, rows.count_E.tolist(), (rows.tok_N, h_NG, y_NO), (w1_EGD, w2_EFO))
        ctx.save_for_backward(x_TD, gate_N, w1_EGD, w2_EFO, h_NG, rows.tok_N, rows.order_N, rows.place_N, rows.count_E)
        ctx.of_tokens, ctx.act = (routing.num_tokens, routing.K, routing.tok_N), act
        return sum_pairs(y_NO, rows.place_N, gate_N, *ctx.of_tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TO):
        x_TD, gate_N, w1_EGD, w2_EFO, h_NG, tok_N, order_N, place_N, count_E = ctx.saved_tensors
        need_x, _, need_w1, need_w2 = ctx.needs_input_grad[:4]
        grad_TO, counts = grad_TO.contiguous(), count_E.tolist()
        gate_N1 = gate_N[order_N].to(x_TD.dtype)[:, None]
        grad_gate_N = torch.empty_like(gate_N)
        grad_x_ND = x_TD.new_empty(len(tok_N), x_TD.shape[1] if need_x else 0)
        grad_w1, grad_w2 = _zero_where_idle(w1_EGD, counts), _zero_where_idle(w2_EFO, counts)

        def expert(tokens, h, gate, grad_gate, grad_x, w1, w2, grad_1, grad_2):
            grad_y = grad_TO.index_select(0, tokens)
            grad_a = grad_y @ w2.T  # before the gate, so that its product with a is the gate's gradient
            grad_h, a = ctx.act.backward(h, grad_a * gate)
            grad_gate.copy_(grad_a.mul_(a).sum(-1))
            if need_w2:
                torch.mm(a.mul_(gate).T, grad_y, out=grad_2)
            if need_w1:
                torch.mm(grad_h.T, x_TD.index_select(0, tokens), out=grad_1)
            if need_x:
                torch.mm(grad_h, w1, out=grad_x)

        rows = (tok_N, h_NG, gate_N1, grad_gate_N, grad_x_ND)
        _for_each(expert, counts, rows, (w1_EGD, w2_EFO, grad_w1, grad_w2))
        grad_x = sum_pairs(grad_x_ND, place_N, None, *ctx.of_tokens) if need_x else None
        return grad_x, grad_gate_N[place_N], grad_w1, grad_w2, None, None, None


class _EveryExpert(torch.autograd.Function):
    """Where every token goes to every expert: nothing is sorted or gathered, and products add up as they are made."""

    @staticmethod
    def forward(ctx, x_TD, gate_TE, w1_EGD, w2_EFO, act):
        h_E, y_TO = [], x_TD.new_zeros(len(x_TD), w2_EFO.shape[2])
        for gate_T, w1, w2 in zip(gate_TE.unbind(1), w1_EGD, w2_EFO, strict=True):
            h_E.append(x_TD @ w1.T)
            y_TO.addmm_(act.forward(h_E[-1]).mul_(gate_T[:, None]), w2)
        ctx.save_for_backward(x_TD, gate_TE, w1_EGD, w2_EFO, *h_E)
        ctx.act = act
        return y_TO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TO):
        x_TD, gate_TE, w1_EGD, w2_EFO, *h_E = ctx.saved_tensors
        need_x, _, need_w1, need_w2 = ctx.needs_input_grad[:4]
        grad_TO = grad_TO.contiguous()
        grad_gate_ET = gate_TE.new_empty(gate_TE.shape[1], len(gate_TE))
        grad_x = torch.zeros_like(x_TD) if need_x else None
        grad_w1, grad_w2 = torch.empty_like(w1_EGD), torch.empty_like(w2_EFO)
        for e, (h, w1, w2) in enumerate(zip(h_E, w1_EGD, w2_EFO, strict=True)):
            gate = gate_TE[:, e, None]
            grad_a = grad_TO @ w2.T  # before the gate, so that its product with a is the gate's gradient
            grad_h, a = ctx.act.backward(h, grad_a * gate)
            torch.sum(grad_a.mul_(a), -1, out=grad_gate_ET[e])
            if need_w2:
                torch.mm(a.mul_(gate).T, grad_TO, out=grad_w2[e])
            if need_w1:
                torch.mm(grad_h.T, x_TD, out=grad_w1[e])
            if grad_x is not None:
                grad_x.addmm_(grad_h, w1)
        return grad_x, grad_gate_ET.T, grad_w1, grad_w2, None


def _for_each(work: Callable[..., None], counts: list[int], rows: tuple[Tensor, ...], experts: tuple[Tensor, ...]):
    """Call `work` for every expert that has rows, with its part of each row tensor and its slice of each expert tensor.

    Split and unbound once: indexing inside the loop costs as much as a small product. One expert a thread, largest
    first, unless one of them holds more than a thread's share.
    """
    parts = zip(counts, *(r.split(counts) for r in rows), *(e.unbind(0) for e in experts), strict=True)
    jobs = sorted((part for part in parts if part[0]), key=lambda part: -part[0])
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) < 2 * threads or jobs[0][0] * threads > 1.5 * sum(counts):
        for job in jobs:
            work(*job[1:])
    else:
        share(work, (job[1:] for job in jobs), threads)


def _zero_where_idle(w_E: Tensor, counts: list[int]) -> Tensor:
    """Room for a gradient, 0 for the experts that nobody uses."""
    grad = torch.empty_like(w_E)
    for e, count in enumerate(counts):
        if not count:
            grad[e].zero_()
    return grad


def sum_pairs(y_NO: Tensor, place_N: Tensor, gate_N: Tensor | None, num_tokens: int, k: int | None, tok_N: Tensor):
    """The (weighted) sum of each token's rows of y: one fused pass, in a fixed order. Returns [T, O]."""
    if y_NO.dtype != torch.float32:
        y = y_NO[place_N].float()
        y = y if gate_N is None else y * gate_N[:, None]
        return y.new_zeros(num_tokens, y.shape[1]).index_add_(0, tok_N, y).to(y_NO.dtype)
    if k is not None:
        weights = None if gate_N is None else gate_N.reshape(num_tokens, k)
        return F.embedding_bag(place_N.reshape(num_tokens, k), y_NO, mode="sum", per_sample_weights=weights)
    starts = torch.searchsorted(tok_N, torch.arange(num_tokens, device=tok_N.device))
    return F.embedding_bag(place_N, y_NO, starts, mode="sum", per_sample_weights=gate_N)


def grouped(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """Grouped matrix products over the sorted rows: one call for all experts; for GPUs, and for few rows an expert."""
    if torch.compiler.is_compiling() and not _grouped_fits(weights):
        return _grouped_untraced(x_TD, routing, weights)
    if x_TD.device.type == "cpu" and not torch.compiler.is_compiling():
        return _GroupedOnCPU.apply(
            x_TD, routing.gate_N, weights.w1_EGD, weights.w2_EFO, sort_pairs(routing), routing, weights.act
        )
    rows = sort_pairs(routing)
    ends = rows.count_E.cumsum(0).to(torch.int32)
    h_NG = torch._grouped_mm(x_TD[rows.tok_N], weights.w1_EGD.transpose(1, 2), offs=ends)
    y_NO = _Contiguous.apply(torch._grouped_mm(weights.act.forward(h_NG), weights.w2_EFO, offs=ends))
    weighted = y_NO.float() * routing.gate_N[rows.order_N][:, None]
    return weighted.new_zeros(len(x_TD), y_NO.shape[1]).index_add(0, rows.tok_N, weighted).to(x_TD.dtype)


@_disable_dynamo  # traced products take bf16 alone
def _grouped_untraced(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    return grouped(x_TD, routing, weights)


class _GroupedOnCPU(torch.autograd.Function):
    """The same with one pass where autograd makes several, and the gathered rows gathered again for backward."""

    @staticmethod
    def forward(ctx, x_TD, gate_N, w1_EGD, w2_EFO, rows, routing, act):
        ends = rows.count_E.cumsum(0).to(torch.int32)
        h_NG = torch._grouped_mm(x_TD.index_select(0, rows.tok_N), w1_EGD.transpose(1, 2), offs=ends)
        y_NO = torch._grouped_mm(act.forward(h_NG), w2_EFO, offs=ends)
        ctx.save_for_backward(x_TD, gate_N, w1_EGD, w2_EFO, h_NG, rows.tok_N, rows.order_N, rows.place_N, ends)
        ctx.of_tokens, ctx.act = (routing.num_tokens, routing.K, routing.tok_N), act
        return sum_pairs(y_NO, rows.place_N, gate_N, *ctx.of_tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_TO):
        x_TD, gate_N, w1_EGD, w2_EFO, h_NG, tok_N, order_N, place_N, ends = ctx.saved_tensors
        need_x, _, need_w1, need_w2 = ctx.needs_input_grad[:4]
        gate_N1 = gate_N[order_N].to(x_TD.dtype)[:, None]
        grad_y = grad_TO.contiguous().index_select(0, tok_N)
        grad_a = torch._grouped_mm(grad_y, w2_EFO.transpose(1, 2), offs=ends)
        grad_h, a = ctx.act.backward(h_NG, grad_a * gate_N1)
        grad_gate = grad_a.mul_(a).sum(-1).to(gate_N.dtype)[place_N]
        grad_w2 = torch._grouped_mm(a.mul_(gate_N1).T, grad_y, offs=ends) if need_w2 else None
        grad_w1 = torch._grouped_mm(grad_h.T, x_TD.index_select(0, tok_N), offs=ends) if need_w1 else None
        grad_x = None
        if need_x:
            grad_x = sum_pairs(torch._grouped_mm(grad_h, w1_EGD, offs=ends), place_N, None, *ctx.of_tokens)
        return grad_x, grad_gate, grad_w1, grad_w2, None, None, None


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
    most = max(int(rows.count_E.max()), 1)
    begin_E = rows.count_E.cumsum(0) - rows.count_E
    exp_N = routing.exp_N[rows.order_N]
    slot_N = exp_N * most + torch.arange(len(exp_N), device=exp_N.device) - begin_E[exp_N]
    num_experts = routing.num_experts
    filled = x_TD.new_zeros(num_experts * most, x_TD.shape[1]).index_copy(0, slot_N, x_TD[rows.tok_N])
    h = torch.bmm(filled.reshape(num_experts, most, -1), weights.w1_EGD.transpose(1, 2))
    y = torch.bmm(weights.act.forward(h), weights.w2_EFO).reshape(num_experts * most, -1)[slot_N]
    weighted = y.float() * routing.gate_N[rows.order_N][:, None]
    return weighted.new_zeros(len(x_TD), y.shape[1]).index_add(0, rows.tok_N, weighted).to(x_TD.dtype)


def neuron_sparse(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """Of ReLU experts only the neurons in use: for one token or a few. It is in nn/sparse.py, which builds on this."""
    from polyroute.nn.sparse import neuron_sparse as run

    return run(x_TD, routing, weights)


EXECUTORS: dict[str, Executor] = {
    "dense": dense,
    "sorted_loop": sorted_loop,
    "grouped": grouped,
    "padded": padded,
    "neuron_sparse": neuron_sparse,
}


def executor(name: str, x_TD: Tensor, routing: Routing, weights: Weights) -> Executor:
    """The executor of this name, or for "auto" the fastest for this device, after the shapes are checked.

    Raises: ShapeError, ConfigError (mixed dtypes), UnknownNameError.
    """
    check(x_TD, weights)
    if routing.num_experts != len(weights.w1_EGD):
        raise ShapeError("routing.count_E", got=(routing.num_experts,), expected=(len(weights.w1_EGD),))
    if name != "auto":
        if name not in EXECUTORS:
            raise UnknownNameError("executor", name, EXECUTORS)
        return EXECUTORS[name]
    if x_TD.device.type == "cpu":
        return sorted_loop
    return grouped if _grouped_fits(weights) else padded


def check(x_TD: Tensor, weights: Weights) -> None:
    """Raise ShapeError or ConfigError unless these experts can read x; called before the router does any work."""
    dim = weights.w1_EGD.shape[2]
    if x_TD.ndim != 2 or x_TD.shape[1] != dim:
        raise ShapeError("x", got=tuple(x_TD.shape), expected=("T", dim))
    if not x_TD.dtype == weights.w1_EGD.dtype == weights.w2_EFO.dtype:
        got = f"{x_TD.dtype}, {weights.w1_EGD.dtype}, {weights.w2_EFO.dtype}"
        raise ConfigError(
            "x, w1, w2", got=got, expected="one dtype", hint="Convert the layer or its input, or use autocast."
        )


def _grouped_fits(weights: Weights) -> bool:
    """Grouped products want rows of a multiple of 16 bytes, and traced ones bf16."""
    size = weights.w1_EGD.element_size()
    if torch.compiler.is_compiling() and weights.w1_EGD.dtype != torch.bfloat16:
        return False
    return all(width * size % 16 == 0 for width in (*weights.w1_EGD.shape[1:], *weights.w2_EFO.shape[1:]))
