"""Layers of a group use each other's experts: one pool, a wider router for each layer, no new expert."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.experts import Experts
from polyroute.nn.moe import MoE, layers
from polyroute.nn.normalise import CandidateMask
from polyroute.nn.scorers import LinearScorer


def share_experts(group: Sequence[MoE], *, start: int | None = None, end: int = 0, seed: int = 0) -> list[MoE]:
    """Layers that hold the experts of all of `group` in one pool, in its order: expert e of layer i is i x E + e.

    Each new layer has the parts of the old one, its router's rows and, copied, its experts; rows for the experts of the
    others are drawn with `seed` as the scorer draws its own, so that opening is no shock.
    Up to step `start` a layer uses its own experts alone and computes what it did; from there to step `end` the others
    open one after the other in an order of each layer's own. start None: all are open and there is no schedule. Steps
    go on from the old layer's.

    Returns new layers; the old ones are as before, and dense shared experts are held by both. Buffers of mods and
    objectives start anew.
    Raises: ConfigError unless the layers are alike, each with a pool of its own and a linear scorer.
    Source: ReXMoE (arXiv:2510.17483); orders for each layer, and that groups do not overlap, are inferred.
    """
    _require_alike(group)
    each, r = group[0].pool.num_experts, len(group)
    pool = copy.deepcopy(group[0].pool)
    pool.w1_EGD = nn.Parameter(torch.cat([moe.pool.w1_EGD.detach() for moe in group]))
    pool.w2_EFO = nn.Parameter(torch.cat([moe.pool.w2_EFO.detach() for moe in group]))
    found = []
    for i, moe in enumerate(group):
        mods = moe.config["mods"]
        if start is not None:
            local = (i * each, (i + 1) * each)
            mods = (CandidateMask(local, start, max(end, start), seed=seed * r + i), *mods)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * r + i)
            new = MoE(**{**moe.config, "num_experts": r * each, "mods": mods, "pool": pool, "shared": moe.shared or 0})
        _copy_router(moe, new, slice(i * each, (i + 1) * each))
        new.step = moe.step
        found.append(new.train(moe.training))
    return found


def _copy_router(old: MoE, new: MoE, rows: slice) -> None:
    """The old router's input, normaliser and rows in the new one."""
    scorer = new.router.scorer
    with torch.no_grad():
        scorer.weight[rows] = old.router.scorer.weight
        if scorer.bias is not None:
            scorer.bias[rows] = old.router.scorer.bias
    for name in ("inp", "norm"):
        part = getattr(new.router, name)
        for key, value in part.state_dict().items() if isinstance(part, nn.Module) else ():
            if getattr(old.router, name).state_dict()[key].shape != value.shape:
                raise ConfigError(name, got=f"{key} with a number for each expert", expected="none that depends on E")
        if isinstance(part, nn.Module):
            part.load_state_dict(getattr(old.router, name).state_dict())


def _require_alike(group: Sequence[MoE]) -> None:
    if not group:
        raise ConfigError("group", got="no layer", expected="1 or more")
    sizes = {tuple(moe.config[name] for name in ("dim", "width", "num_experts", "act", "out")) for moe in group}
    if len(sizes) > 1:
        raise ConfigError("group", got=sorted(map(str, sizes)), expected="layers of one size and activation")
    for moe in group:
        if not isinstance(moe.router.scorer, LinearScorer):
            raise ConfigError("scorer", got=type(moe.router.scorer).__name__, expected="Linear, a row for each expert")
        if not isinstance(moe.pool, Experts):
            raise ConfigError("pool", got=type(moe.pool).__name__, expected="Experts")
    if len({id(moe.pool) for moe in group}) < len(group):
        raise ConfigError("group", got="layers that share a pool already", expected="a pool of its own for each")


def share_in_groups(model: nn.Module, r: int, *, start: int | None = None, end: int = 0, seed: int = 0) -> nn.Module:
    """Put `share_experts` layers in the place of every r MoE layers of a model, in its order. Returns the model.

    Before the optimizer is made. Parameters of the router grow r-fold, those of the experts stay as they are.
    Raises: ConfigError unless the number of layers is a multiple of r.
    """
    named = layers(model)
    if not named:
        raise ConfigError("model", got=type(model).__name__, expected="a model with MoE layers")
    if r < 1 or len(named) % r:
        raise ConfigError("r", got=r, expected=f"a divisor of {len(named)}, the number of MoE layers")
    names = list(named)
    for first in range(0, len(names), r):
        group = names[first : first + r]
        shared = share_experts([named[name] for name in group], start=start, end=end, seed=seed + first)
        for name, new in zip(group, shared, strict=True):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, new)
    return model


def pool_counts(model: nn.Module) -> list[Tensor]:
    """Pairs of each expert in the last forward pass, over all layers that hold it: count_E for each pool."""
    total: dict[int, Tensor] = {}
    for layer in layers(model).values():
        if layer.routing is not None:
            count_E = layer.routing.count_E
            total[id(layer.pool)] = total[id(layer.pool)] + count_E if id(layer.pool) in total else count_E.clone()
    return list(total.values())
