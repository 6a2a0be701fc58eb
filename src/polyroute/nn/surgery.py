"""Dense networks into experts, and E experts into m x E: functions that return new weights and leave the old alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.experts import Experts, FeedForward
from polyroute.nn.upcycling import Upcycled, upcycle

__all__ = [
    "Masked", "Upcycled", "masked_experts", "neuron_masks", "neurons", "slice_ffn", "subnetworks", "upcycle",
    "upcycle_dense",
]  # fmt: skip

ORDERS = ("contiguous", "random", "kmeans")


def neurons(ffn: FeedForward, x_TD: Tensor) -> Tensor:
    """What the second matrix reads, a [T, F]: how far each neuron of a dense network is active on each token."""
    return ffn.act.forward(ffn.w1(x_TD))


def subnetworks(ffn: FeedForward, owned: Sequence[Tensor]) -> Experts:
    """Experts that each own some of a dense network's neurons; one may belong to several, or to none.

    owned: an index tensor into [0, F) for each expert. All get the width of the widest; what is filled up is 0 and
    gets no gradient, so it stays 0. Summed with gates of 1, experts that own each neuron once are the dense network.
    """
    width = max((len(index) for index in owned), default=0)
    made = _empty_experts(ffn, len(owned), max(width, 1))
    halves = 2 if ffn.act.gated else 1
    with torch.no_grad():
        made.w1_EGD.zero_()
        made.w2_EFO.zero_()
        w1_HFD = ffn.w1.weight.reshape(halves, -1, ffn.w1.in_features)
        new_EHFD = made.w1_EGD.reshape(len(owned), halves, made.w2_EFO.shape[1], -1)
        for e, index in enumerate(owned):
            new_EHFD[e, :, : len(index)] = w1_HFD[:, index]
            made.w2_EFO[e, : len(index)] = ffn.w2.weight.T[index]
    return made


def slice_ffn(
    ffn: FeedForward,
    num_experts: int,
    order: str = "contiguous",
    *,
    features_FX: Tensor | None = None,
    seed: int = 0,
) -> Experts:
    """Cut a dense network into experts of equal width that own each neuron once: all of them together are the network.

    order: "contiguous" runs of neurons; "random"; "kmeans" puts neurons with like features together in groups of one
    size. features_FX: what is alike, e.g. activations [F, T]; None takes each neuron's weights in w1. Where E does not
    divide F, the widths differ by one and zeros fill them up. Scale K chosen ones by E / K: gate=Hard(E / K).
    Raises: ConfigError, UnknownNameError. Source: FactorLLM (arXiv:2408.11855) cuts contiguously; the balanced
    k-means order follows MoEfication (arXiv:2110.01786).
    """
    width = ffn.w2.in_features
    if not 1 <= num_experts <= width:
        raise ConfigError("num_experts", got=num_experts, expected=f"1 to {width}, the network's width")
    if order not in ORDERS:
        raise UnknownNameError("order", order, ORDERS)
    device = ffn.w2.weight.device
    generator = torch.Generator().manual_seed(seed)
    if order == "kmeans":
        features_FX = _rows_of_neurons(ffn) if features_FX is None else features_FX
        if features_FX.ndim != 2 or len(features_FX) != width:
            raise ShapeError("features_FX", got=tuple(features_FX.shape), expected=(width, "X"))
        group_F = _even_groups(features_FX.detach().float(), num_experts, generator)
        return subnetworks(ffn, [(group_F == e).nonzero()[:, 0] for e in range(num_experts)])
    ids = torch.arange(width) if order == "contiguous" else torch.randperm(width, generator=generator)
    return subnetworks(ffn, [part.to(device) for part in ids.tensor_split(num_experts)])


def neuron_masks(activations: Mapping[str, Tensor], keep: float = 0.5) -> Tensor:
    """Which neurons each domain needs: bool [J, F], the `keep` F neurons of largest mean absolute activation.

    activations: domain -> a [T, F] as `neurons` gives it, or its mean size [F]. Rows in the mapping's order.
    Source: Read-ME (arXiv:2410.19123), whose domains keep half of the neurons.
    """
    if not activations:
        raise ConfigError("activations", got="no domains", expected="a tensor for each domain")
    if not 0.0 < keep <= 1.0:
        raise ConfigError("keep", got=keep, expected="a share of the neurons in (0, 1]")
    sizes = [a.detach().float().abs().reshape(-1, a.shape[-1]).mean(0) for a in activations.values()]
    for name, size in zip(activations, sizes, strict=True):
        if size.shape != sizes[0].shape:
            raise ShapeError(f"activations[{name!r}]", got=tuple(size.shape), expected=tuple(sizes[0].shape))
    size_JF = torch.stack(sizes)
    kept = size_JF.topk(max(round(keep * size_JF.shape[1]), 1), dim=-1).indices
    return torch.zeros_like(size_JF, dtype=torch.bool).scatter_(1, kept, True)


class Masked(NamedTuple):
    """A dense network as overlapping experts: expert j of domain j is always(x) + private_j(x)."""

    always: FeedForward | None  # the neurons of every mask, for MoE(shared=...); None: there are none
    private: Experts  # the others of each mask, for MoE(pool=...)
    width_E: Tensor  # int64, private neurons of each expert; beyond it there are zeros


def masked_experts(ffn: FeedForward, mask_JF: Tensor) -> Masked:
    """Experts from neuron masks: the neurons of all masks always on, the rest of each mask private to it.

    mask_JF: bool [J, F]. Use it as MoE(..., pool=private, shared=always, select=TopK(1), gate=Hard(1.0)), then a token
    of domain j gets exactly the dense network without the neurons outside mask j. Source: Read-ME (arXiv:2410.19123).
    """
    if mask_JF.ndim != 2 or mask_JF.shape[1] != ffn.w2.in_features:
        raise ShapeError("mask_JF", got=tuple(mask_JF.shape), expected=("J", ffn.w2.in_features))
    always_F = mask_JF.all(0)
    private_JF = mask_JF & ~always_F
    private = subnetworks(ffn, [mask.nonzero()[:, 0] for mask in private_JF])
    always = _dense_part(ffn, always_F.nonzero()[:, 0]) if bool(always_F.any()) else None
    return Masked(always, private, private_JF.sum(-1))


def upcycle_dense(ffn: FeedForward, num_experts: int, noise: float = 0.0, *, seed: int = 0) -> Experts:
    """E copies of a dense network. With gates that sum to 1 (Renorm) the layer starts as the network, for every k.

    noise: standard deviation of what is added to every weight, as a share of its matrix's own; 0 keeps exactness, but
    copies that are always chosen together then stay equal. Source: sparse upcycling (arXiv:2212.05055).
    """
    if noise < 0:
        raise ConfigError("noise", got=noise, expected="0 or more")
    made = _empty_experts(ffn, num_experts, ffn.w2.in_features)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for new, old in ((made.w1_EGD, ffn.w1.weight), (made.w2_EFO, ffn.w2.weight.T)):
            new.copy_(old.expand_as(new))
            if noise:
                drawn = torch.randn(new.shape, generator=generator).to(new)
                new.add_(drawn, alpha=noise * float(old.detach().float().std()))
    return made


def _empty_experts(ffn: FeedForward, num_experts: int, width: int) -> Experts:
    """Experts of a dense network's form, dtype and device; no random number is drawn from the global generator."""
    with torch.random.fork_rng(devices=[]):
        made = Experts(ffn.w1.in_features, width, num_experts, act=ffn.act.name, out=ffn.w2.out_features)
    return made.to(ffn.w1.weight)


def _dense_part(ffn: FeedForward, index: Tensor) -> FeedForward:
    """The dense network of some of the neurons."""
    with torch.random.fork_rng(devices=[]):
        made = FeedForward(ffn.w1.in_features, len(index), act=ffn.act.name, out=ffn.w2.out_features)
    made = made.to(ffn.w1.weight)
    halves = 2 if ffn.act.gated else 1
    with torch.no_grad():
        made.w1.weight.copy_(ffn.w1.weight.reshape(halves, -1, ffn.w1.in_features)[:, index].flatten(0, 1))
        made.w2.weight.copy_(ffn.w2.weight[:, index])
    return made


def _rows_of_neurons(ffn: FeedForward) -> Tensor:
    """Each neuron's weights in w1, gate and up side by side [F, D or 2 D]."""
    halves = 2 if ffn.act.gated else 1
    return ffn.w1.weight.detach().reshape(halves, -1, ffn.w1.in_features).transpose(0, 1).flatten(1)


def _even_groups(x_FX: Tensor, num_groups: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """k-means with groups whose sizes differ by at most one: int64 [F], the group of each row."""
    start = torch.randperm(len(x_FX), generator=generator)[:num_groups].to(x_FX.device)
    centre = x_FX[start]
    room = torch.tensor([len(part) for part in torch.arange(len(x_FX)).tensor_split(num_groups)], device=x_FX.device)
    group_F = room.new_full((len(x_FX),), -1)
    for _ in range(rounds):
        before, group_F = group_F, _fill(torch.cdist(x_FX, centre), room)
        if torch.equal(before, group_F):
            break
        total = torch.zeros_like(centre).index_add_(0, group_F, x_FX)
        centre = total / room[:, None]
    return group_F


def _fill(distance_FG: Tensor, room_G: Tensor) -> Tensor:
    """Each row to the nearest group with room; where more ask than there is room for, the nearest rows stay."""
    group_F = room_G.new_full((len(distance_FG),), -1)
    left = room_G.clone()
    while bool((group_F < 0).any()):
        free = (group_F < 0).nonzero()[:, 0]
        near = distance_FG[free].masked_fill(left == 0, torch.inf)
        best, wish = near.min(-1)
        for g in wish.unique().tolist():
            asking = (wish == g).nonzero()[:, 0]
            kept = asking[best[asking].argsort(stable=True)[: int(left[g])]]
            group_F[free[kept]] = g
            left[g] -= len(kept)
    return group_F
