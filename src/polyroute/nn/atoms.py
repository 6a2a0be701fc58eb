"""A pool of very many experts of one neuron each: y_t = sum over a token's atoms n of gate x act(x_t . w_n) v_n.

    MoE(64, 1, 1024, scorer=ProductKeys(32, 32, batch_norm=True), norm=ProductLogSoftmax(), select=ProductTopK(16),
        gate=Raw(), pool=AtomBank(64, 1024), shared=128)

Every executor gives the same y and the same gradients; `dense` asks every atom about every token and is their oracle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.activations import Activation, activation
from polyroute.nn.routing import Routing

GROUP = 64  # consecutive atoms in use that `grouped` takes together
FETCH_LIMIT = 1 << 22  # numbers fetched pair by pair, beyond which `grouped` is faster

AtomExecutor = Callable[[Tensor, Routing, Tensor, Tensor, Activation], Tensor]


class AtomBank(nn.Module):
    """N experts of one neuron, for MoE(pool=...): w_ND [N, D] reads, v_NO [N, O] writes.

    act: an activation that is not gated. out: O, None for D. Source: OmniMoE, whose atoms use plain SiLU;
    experts of one neuron stand in PEER too (arXiv:2407.04153).
    """

    def __init__(self, dim: int, num_experts: int, *, act: str = "silu", out: int | None = None):
        super().__init__()
        for name, size in (("dim", dim), ("num_experts", num_experts)):
            if size < 1:
                raise ConfigError(name, got=size, expected="1 or more")
        self.act = activation(act)
        if self.act.gated:
            raise ConfigError("act", got=act, expected="an activation that is not gated: silu, relu, gelu, identity")
        self.w_ND = nn.Parameter(torch.empty(num_experts, dim))
        self.v_NO = nn.Parameter(torch.empty(num_experts, out or dim))
        nn.init.normal_(self.w_ND, std=dim**-0.5)
        nn.init.normal_(self.v_NO, std=1.0)

    @property
    def num_experts(self) -> int:
        return self.w_ND.shape[0]

    def forward(self, x_TD: Tensor, routing: Routing, choose: str = "auto") -> Tensor:
        """y [T, O]. choose: a name of ATOM_EXECUTORS, or "auto". Raises: ShapeError, UnknownNameError."""
        num_atoms, dim = self.w_ND.shape
        if x_TD.ndim != 2 or x_TD.shape[1] != dim:
            raise ShapeError("x", got=tuple(x_TD.shape), expected=("T", dim))
        if routing.num_experts != num_atoms:
            raise ShapeError("routing.count_E", got=(routing.num_experts,), expected=(num_atoms,))
        if choose != "auto" and choose not in ATOM_EXECUTORS:
            raise UnknownNameError("executor", choose, ATOM_EXECUTORS)
        run = ATOM_EXECUTORS[fastest(routing, num_atoms, dim) if choose == "auto" else choose]
        return run(x_TD, routing, self.w_ND.to(x_TD.dtype), self.v_NO.to(x_TD.dtype), self.act)

    def extra_repr(self) -> str:
        return f"atoms={self.num_experts}, dim={self.w_ND.shape[1]}, out={self.v_NO.shape[1]}, act={self.act.name}"


def dense(x_TD: Tensor, routing: Routing, w_ND: Tensor, v_NO: Tensor, act: Activation) -> Tensor:
    """Every atom on every token, weighted by the gates: the oracle."""
    weighted_TN = act.forward(x_TD @ w_ND.T).float() * routing.gates_TE()
    return weighted_TN.to(x_TD.dtype) @ v_NO


def gather(x_TD: Tensor, routing: Routing, w_ND: Tensor, v_NO: Tensor, act: Activation) -> Tensor:
    """Fetch the weights of every pair: simple, and the pairs x D numbers it copies twice are its price."""
    a_N = _active(x_TD, routing, w_ND, act)
    y_NO = v_NO.index_select(0, routing.exp_N).float() * a_N[:, None]
    return y_NO.new_zeros(len(x_TD), v_NO.shape[1]).index_add(0, routing.tok_N, y_NO).to(x_TD.dtype)


def embedding_bag(x_TD: Tensor, routing: Routing, w_ND: Tensor, v_NO: Tensor, act: Activation) -> Tensor:
    """The same, the second half as one fused weighted sum that copies nothing; for few pairs, and for CPUs."""
    a_N = _active(x_TD, routing, w_ND, act)
    table = v_NO if v_NO.dtype == torch.float32 else v_NO.float()
    if not len(a_N):
        return x_TD.new_zeros(len(x_TD), v_NO.shape[1]) + 0.0 * (a_N.sum() + table.sum())
    begin_T = torch.searchsorted(routing.tok_N, torch.arange(len(x_TD), device=x_TD.device))
    return F.embedding_bag(routing.exp_N, table, begin_T, mode="sum", per_sample_weights=a_N).to(x_TD.dtype)


def _active(x_TD: Tensor, routing: Routing, w_ND: Tensor, act: Activation) -> Tensor:
    """gate x act(x . w) of each pair [N], fp32."""
    h_N = (x_TD.index_select(0, routing.tok_N) * w_ND.index_select(0, routing.exp_N)).sum(-1)
    return act.forward(h_N).float() * routing.gate_N


@torch.compiler.disable  # its loop depends on the counts
def grouped(x_TD: Tensor, routing: Routing, w_ND: Tensor, v_NO: Tensor, act: Activation, group: int = GROUP) -> Tensor:
    """Expert-centric: weights are fetched once an atom in use, not once a pair.

    `group` consecutive atoms in use form two small products with the tokens that use any of them; gates of 0 leave out
    the pairs that are not routed. Source: OmniMoE.
    """
    if not len(routing.exp_N):
        return x_TD.new_zeros(len(x_TD), v_NO.shape[1]) + 0.0 * (routing.gate_N.sum() + v_NO.sum() + w_ND.sum())
    used_U = routing.count_E.nonzero()[:, 0]
    place_E = torch.empty_like(routing.count_E)
    place_E[used_U] = torch.arange(len(used_U), device=used_U.device)
    place_N = place_E[routing.exp_N]
    key_N = place_N.div(group, rounding_mode="floor") * len(x_TD) + routing.tok_N
    key_R, row_N = key_N.unique(return_inverse=True)  # a row for each (group, token), in the order of groups
    tok_R, num_groups = key_R % len(x_TD), -(-len(used_U) // group)
    rows = torch.bincount(key_R.div(len(x_TD), rounding_mode="floor"), minlength=num_groups).tolist()
    gate_RG = routing.gate_N.new_zeros(len(key_R), group).index_put((row_N, place_N % group), routing.gate_N)
    parts = zip(
        x_TD.index_select(0, tok_R).split(rows),
        gate_RG.split(rows),
        w_ND.index_select(0, used_U).split(group),
        v_NO.index_select(0, used_U).split(group),
        strict=True,
    )
    y_RO = torch.cat([((act.forward(x @ w.T).float() * g[:, : len(w)]).to(x.dtype) @ v) for x, g, w, v in parts])
    return y_RO.new_zeros(len(x_TD), v_NO.shape[1]).float().index_add(0, tok_R, y_RO.float()).to(x_TD.dtype)


def fastest(routing: Routing, num_atoms: int, dim: int) -> str:
    """The executor "auto" takes. Measured on a CPU, fp32: fetching wins until the fetched weights leave the caches."""
    num_pairs = len(routing.exp_N)
    if num_pairs * 8 >= routing.num_tokens * num_atoms:
        return "dense"
    large = num_pairs * dim >= FETCH_LIMIT and num_pairs >= 4 * num_atoms
    return "grouped" if large else "embedding_bag"


ATOM_EXECUTORS: dict[str, AtomExecutor] = {
    "dense": dense,
    "gather": gather,
    "grouped": grouped,
    "embedding_bag": embedding_bag,
}
