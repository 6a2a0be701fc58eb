"""The neuron-sparse executor: compute the gate of a ReGLU expert, then only the neurons whose gate is above 0.

For a few tokens at a time, when the weights have to come from memory: rows of `up` and of the second matrix (stored as
[E, F, O], so that they are contiguous) are not read where the gate is 0. Exact, with exact gradients.
Source: SmallThinker (arXiv:2507.20984).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polyroute.nn.dispatch import Weights, sort_pairs, sorted_loop
from polyroute.nn.routing import Routing

RELU = ("reglu", "relu")  # activations that leave zeros behind


def neuron_sparse(x_TD: Tensor, routing: Routing, weights: Weights) -> Tensor:
    """An executor, `MoE(executor=neuron_sparse)`: of each expert only the neurons that some token of its needs.

    Equal to the others in y [T, O] and in every gradient. Pays with one token or a few; with many tokens few neurons
    are needed by none. Activations without exact zeros go to `sorted_loop`.
    """
    if weights.act.name not in RELU:
        return sorted_loop(x_TD, routing, weights)
    rows = sort_pairs(routing)
    parts, start = [], 0
    for e, count in enumerate(rows.count_E.tolist()):
        if count:
            x = x_TD[rows.tok_N[start : start + count]]
            parts.append(_expert(x, weights.w1_EGD[e], weights.w2_EFO[e], weights.act.gated))
            start += count
    y_NO = torch.cat(parts) if parts else x_TD.new_zeros(0, weights.w2_EFO.shape[2])
    weighted_NO = y_NO.float() * routing.gate_N[rows.order_N][:, None]
    out_TO = weighted_NO.new_zeros(len(x_TD), y_NO.shape[1]).index_add(0, rows.tok_N, weighted_NO)
    return out_TO.to(x_TD.dtype)


def _expert(x_nD: Tensor, w1_GD: Tensor, w2_FO: Tensor, gated: bool) -> Tensor:
    """One expert on its tokens: the gate in full, then the rows in use."""
    width = len(w2_FO)
    gate_nF = F.linear(x_nD, w1_GD[:width])
    (rows,) = (gate_nF.detach() > 0).any(0).nonzero(as_tuple=True)
    active = F.relu(gate_nF.index_select(1, rows))
    if gated:
        active = active * F.linear(x_nD, w1_GD[width:].index_select(0, rows))
    return active @ w2_FO.index_select(0, rows)


@torch.no_grad()
def neuron_sparsity(x_TD: Tensor, routing: Routing, weights: Weights, threshold: float = 0.0) -> Tensor:
    """Share of each pair's neurons [N] that contribute nothing: |act(gate)| at most `threshold`.

    About 0 for activations such as SiLU. Of plain activations the neuron itself is its gate.
    """
    width, act = weights.w2_EFO.shape[1], weights.act
    rows = sort_pairs(routing)
    idle_N, start = x_TD.new_zeros(len(rows.tok_N), dtype=torch.float32), 0
    for e, count in enumerate(rows.count_E.tolist()):
        h = F.linear(x_TD[rows.tok_N[start : start + count]], weights.w1_EGD[e])
        if act.gated:
            h = torch.cat([h[:, :width], torch.ones_like(h[:, width:])], 1)  # act(gate) x 1
        idle_N[start : start + count] = (act.forward(h).abs() <= threshold).float().mean(1)
        start += count
    return idle_N[rows.place_N]
