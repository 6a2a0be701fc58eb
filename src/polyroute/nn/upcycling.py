"""A trained layer of E experts becomes one of m x E, in the middle of training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.experts import Experts
from polyroute.nn.moe import MoE, RouterGradientWarning
from polyroute.nn.normalise import CandidateMask, Late, SelectionBias, Sigmoid, Softmax
from polyroute.nn.scorers import MLP, ProductKeys
from polyroute.nn.selection import Capacity, GroupTopK, TopK

SCORES = ("uniform", "weight", "gradient", "saliency", "moment")


class Upcycled(NamedTuple):
    """A grown layer. source_E: int64 [m E], the expert each one was copied from; the first E are the old ones."""

    moe: MoE
    source_E: Tensor


def upcycle(
    moe: MoE,
    optimizer: torch.optim.Optimizer | None = None,
    m: int = 2,
    score: str | Tensor = "uniform",
    *,
    choose: str = "greedy",
    max_copies: int = 3,
    temperature: float = 1.0,
    bias_noise: float = 0.01,
    opt_state: str = "copy",
    exact_start: bool = False,
    anneal: int = 1000,
    k: int | None = None,
    seed: int = 0,
) -> Upcycled:
    """Grow a layer from E to m x E experts: copies of experts and of their router rows. The old layer is left alone.

    score: who is copied: "uniform", each m - 1 times; or by utility of the first matrix: "weight" ||w||, "gradient"
    ||g||^2, "saliency" ||w|| ||g||, "moment" ||g||^2 / (||v|| + eps) with v of Adam; or a tensor [E], larger first.
    choose: "greedy", the best first with at most `max_copies` copies each, or "sample" from softmax(score over its
    standard deviation / temperature). bias_noise: standard deviation of the noise on the selection bias of copies, in
    those of the biases (in 1 / E where all are equal); a layer without SelectionBias gets one, so that copies can part.
    optimizer: its groups and moments move to the new parameters; opt_state: the copies' moments, "copy" or "zero".
    k: a new number of experts a token; None keeps it. exact_start: hold copies back at first, and let them in over
    `anneal` optimizer steps (see Late).

    It does not preserve the function for K > 1: twins tie and are chosen together. Without noise (for a softmax: with
    equal biases) it does at K = 1, except for Raw of a softmax, which halves the gates; and with k = 2 K, m = 2 and
    "uniform", for softmax scores (Raw and Renorm) and for sigmoid ones with Renorm. `exact_start` starts exactly for
    every K, gate and bias. A pool that other layers share is grown for this layer alone.
    Raises: ConfigError, UnknownNameError, before anything is changed. Source: system 56, expert upcycling.
    """
    _check(moe, m, opt_state, choose)
    num_old = moe.router.num_experts
    utility_E = None if isinstance(score, str) and score == "uniform" else _utility(moe, optimizer, score)
    copies = _copies(utility_E, num_old, m, max_copies, temperature if choose == "sample" else None, seed)
    source_E = torch.cat([torch.arange(num_old), copies])
    bias_spread = _bias_range(moe)
    config = _grown_config(moe, m, k)
    if exact_start:
        config["mods"] += _held_back(moe, config, anneal, bias_spread)
    new = _rebuilt(moe, config, source_E)
    _perturb_biases(new, num_old, bias_noise, torch.Generator().manual_seed(seed))
    if optimizer is not None:
        _move_state(optimizer, moe, new, source_E, zero_copies=opt_state == "zero")
    return Upcycled(new, source_E)


def _check(moe: MoE, m: int, opt_state: str, choose: str) -> None:
    if not isinstance(moe, MoE):
        hint = "upcycle_dense of nn/surgery.py makes experts of a dense network."
        raise ConfigError("moe", got=type(moe).__name__, expected="a MoE layer", hint=hint)
    if m < 2:
        raise ConfigError("m", got=m, expected="2 or more")
    if opt_state not in ("copy", "zero"):
        raise ConfigError("opt_state", got=opt_state, expected='"copy" or "zero"')
    if choose not in ("greedy", "sample"):
        raise ConfigError("choose", got=choose, expected='"greedy" or "sample"')
    if not isinstance(moe.pool, Experts):
        raise ConfigError("moe.pool", got=type(moe.pool).__name__, expected="Experts")
    for part in (moe.config["scorer"], *moe.config["mods"]):
        if isinstance(part, ProductKeys | CandidateMask):
            raise ConfigError("moe", got=type(part).__name__, expected="parts in which experts have no fixed places")


def _copies(
    utility_E: Tensor | None, num_old: int, m: int, max_copies: int, temperature: float | None, seed: int
) -> Tensor:
    """The expert each new one is copied from, int64 [E (m - 1)]."""
    wanted = num_old * (m - 1)
    if utility_E is None:
        return torch.arange(num_old).repeat(m - 1)
    utility_E = utility_E.detach().float().cpu()
    if temperature is not None:
        logits = utility_E / (utility_E.std().clamp(min=1e-12) * temperature)
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(logits.softmax(-1), wanted, replacement=True, generator=generator)
    if max_copies * num_old < wanted:
        raise ConfigError("max_copies", got=max_copies, expected=f"{m - 1} or more for m = {m}")
    return utility_E.argsort(descending=True, stable=True).repeat_interleave(max_copies)[:wanted]


def _utility(moe: MoE, optimizer: torch.optim.Optimizer | None, score: str | Tensor) -> Tensor:
    """[E], the worth of a copy of each expert."""
    if isinstance(score, Tensor):
        if score.shape != (moe.router.num_experts,):
            raise ShapeError("score", got=tuple(score.shape), expected=(moe.router.num_experts,))
        return score
    if score not in SCORES:
        raise UnknownNameError("score", score, SCORES)
    w1 = moe.pool.w1_EGD
    weight_E = w1.detach().float().flatten(1).norm(dim=1)
    if score == "weight":
        return weight_E
    if w1.grad is None:
        raise ConfigError("score", got=score, expected="gradients", hint="Run a backward pass before upcycle.")
    gradient_E = w1.grad.float().flatten(1).norm(dim=1)
    if score == "gradient":
        return gradient_E**2
    if score == "saliency":
        return weight_E * gradient_E
    moment = None if optimizer is None else optimizer.state.get(w1, {}).get("exp_avg_sq")
    if moment is None:
        raise ConfigError("optimizer", got=type(optimizer).__name__, expected="Adam or AdamW after a step")
    return gradient_E**2 / (moment.float().flatten(1).norm(dim=1) + 1e-8)


def _grown_config(moe: MoE, m: int, k: int | None) -> dict[str, Any]:
    """The layer's configuration for m times the experts."""
    config = dict(moe.config)
    config["num_experts"] = moe.router.num_experts * m
    if not any(isinstance(part, SelectionBias) for part in config["mods"]):
        config["mods"] += (SelectionBias(),)
    if isinstance(config["scorer"], MLP) and config["scorer"].hidden is None:
        config["scorer"] = replace(config["scorer"], hidden=moe.router.num_experts)
    select = config["select"]
    if isinstance(select, GroupTopK):
        select = replace(select, num_groups=select.num_groups * m)
    if k is not None:
        if not isinstance(select, TopK | GroupTopK):
            raise ConfigError("k", got=type(select).__name__, expected="a selection of k experts")
        select = replace(select, k=k)
    config["select"] = select
    return config


def _held_back(moe: MoE, config: Mapping[str, Any], anneal: int, bias_spread: float) -> tuple[Late, ...]:
    """The modifiers that keep copies out of the choice, and out of a softmax, at first."""
    norm, select = config["norm"], config["select"]
    if not isinstance(norm, Softmax | Sigmoid) or not isinstance(select, TopK | GroupTopK | Capacity):
        got = f"{type(norm).__name__} and {type(select).__name__}"
        raise ConfigError("exact_start", got=got, expected="Softmax or Sigmoid with TopK or GroupTopK")
    if isinstance(select, TopK) and select.on == "logits":
        raise ConfigError("exact_start", got='select.on = "logits"', expected='"scores", which lie within 0 and 1')
    late = Late(moe.router.num_experts, begin=moe.step, steps=anneal, price=2.0 + 2.0 * bias_spread)
    return (replace(late, on="logits", price=50.0), late) if isinstance(norm, Softmax) else (late,)


def _bias_range(moe: MoE) -> float:
    return max((float(bias.max() - bias.min()) for bias in _biases(moe)), default=0.0)


def _biases(moe: MoE) -> list[Tensor]:
    return [part.bias_E for part in moe.router.mods if hasattr(part, "bias_E")]


def _perturb_biases(new: MoE, num_old: int, noise: float, generator: torch.Generator) -> None:
    for bias_E in _biases(new):
        copies, spread = bias_E[num_old:], float(bias_E[:num_old].std()) if num_old > 1 else 0.0
        drawn = torch.randn(len(copies), generator=generator).to(copies)
        copies.add_(drawn, alpha=noise * (spread or 1.0 / num_old))


def _rebuilt(moe: MoE, config: Mapping[str, Any], source_E: Tensor) -> MoE:
    """A layer of the grown configuration with the old one's weights, dtype, device, mode and step."""
    old = dict(moe.named_parameters(remove_duplicate=False))
    _, width, out = moe.pool.w2_EFO.shape
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", RouterGradientWarning)  # said when the old layer was built
        pool = Experts(moe.dim, width, len(source_E), act=moe.pool.act.name, out=out)
        new = MoE(**{**config, "pool": pool})
    new.config["pool"] = None
    with torch.no_grad():
        for name, tensor in new.named_parameters(remove_duplicate=False):
            if name in old and tensor is not old[name]:
                tensor.data = _grown(name, old[name].detach(), tuple(tensor.shape), source_E)
                tensor.requires_grad_(old[name].requires_grad)
        _grow_buffers(moe, new, source_E)
    new.train(moe.training)
    new.step = moe.step
    return new


def _grow_buffers(moe: MoE, new: MoE, source_E: Tensor) -> None:
    """Biases are copied; what counts pairs starts at 0 for copies."""
    old = dict(moe.named_buffers(remove_duplicate=False))
    for name, tensor in list(new.named_buffers(remove_duplicate=False)):
        if name not in old:
            tensor.data = tensor.to(moe.pool.w1_EGD.device)
            continue
        grown = _grown(name, old[name], tuple(tensor.shape), source_E)
        if grown.shape != old[name].shape and not name.endswith("bias_E"):
            grown[len(old[name]) :] = 0
        tensor.data = grown


def _grown(name: str, old: Tensor, shape: tuple[int, ...], source_E: Tensor) -> Tensor:
    """A tensor of the old layer, its rows of experts repeated."""
    if tuple(old.shape) == shape:
        return old.clone()
    rows = old[source_E[source_E < len(old)].to(old.device)] if old.ndim else old
    if tuple(rows.shape) != shape:
        raise ShapeError(name, got=tuple(old.shape), expected=shape)
    return rows


def _move_state(optimizer: torch.optim.Optimizer, old: MoE, new: MoE, source_E: Tensor, *, zero_copies: bool) -> None:
    """Put the new parameters in the old ones' groups and grow their moments."""
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    twin = {tensor: after[name] for name, tensor in before.items() if after.get(name, tensor) is not tensor}
    for group in optimizer.param_groups:
        group["params"] = [twin.get(tensor, tensor) for tensor in group["params"]]
    for tensor, grown in twin.items():
        state = optimizer.state.pop(tensor, None)
        if state is None:
            continue
        optimizer.state[grown] = {
            key: _grown_moment(value, tensor, grown, source_E, zero_copies) for key, value in state.items()
        }


def _grown_moment(value: Any, tensor: Tensor, grown: Tensor, source_E: Tensor, zero_copies: bool) -> Any:
    if not isinstance(value, Tensor) or value.shape != tensor.shape or tensor.shape == grown.shape:
        return value.clone() if isinstance(value, Tensor) else value
    moment = value[source_E.to(value.device)]
    if zero_copies:
        moment[len(value) :] = 0
    return moment
