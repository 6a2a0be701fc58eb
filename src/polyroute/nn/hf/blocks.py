"""Expert blocks of transformers: which parts they are made of, their weights read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.experts import FeedForward, GatedFeedForward
from polyroute.nn.gates import Raw, Renorm
from polyroute.nn.moe import MoE
from polyroute.nn.normalise import SelectionBias, Sigmoid, Softmax
from polyroute.nn.selection import GroupTopK, TopK

ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "relu": "reglu"}  # hidden_act of a configuration


def _softmax_top_k(gate: nn.Module) -> dict[str, Any]:
    """Mixtral always renormalises; OLMoE and Qwen as their configuration says."""
    weigh = Renorm() if getattr(gate, "norm_topk_prob", True) else Raw()
    return {"norm": Softmax(), "select": TopK(gate.top_k), "gate": weigh}


def _deepseek_v2(gate: nn.Module) -> dict[str, Any]:
    methods = {
        "greedy": TopK(gate.top_k),
        "group_limited_greedy": GroupTopK(gate.top_k, gate.num_group or 1, gate.topk_group or 1, best=1),
    }
    if gate.topk_method not in methods:
        raise UnknownNameError("topk_method", str(gate.topk_method), methods)
    return {"norm": Softmax(), "select": methods[gate.topk_method], "gate": Raw(float(gate.routed_scaling_factor))}


def _deepseek_v3(gate: nn.Module) -> dict[str, Any]:
    weigh = Renorm if gate.norm_topk_prob else Raw
    return {
        "norm": Sigmoid(),
        "mods": (SelectionBias(),),
        "select": GroupTopK(gate.top_k, gate.num_group, gate.topk_group),
        "gate": weigh(float(gate.routed_scaling_factor)),
    }


FAMILIES: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "MixtralSparseMoeBlock": _softmax_top_k,
    "OlmoeSparseMoeBlock": _softmax_top_k,
    "Qwen2MoeSparseMoeBlock": _softmax_top_k,
    "Qwen3MoeSparseMoeBlock": _softmax_top_k,
    "DeepseekV2Moe": _deepseek_v2,
    "DeepseekV3MoE": _deepseek_v3,
}


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The expert blocks of a model that this module knows, by their name in it. Raises: UnknownNameError if none is."""
    found = {name: part for name, part in model.named_modules() if type(part).__name__ in FAMILIES}
    if not found:
        raise UnknownNameError("expert block in", type(model).__name__, FAMILIES)
    return found


def convert(block: nn.Module) -> MoE:
    """A layer with copies of a block's weights; same outputs and gradients as the block's.

    Routers compute in fp32: in bf16 a token whose two best experts nearly tie may go to the other one than in
    transformers, whose logits are then bf16. Raises: UnknownNameError for a block of another class, ConfigError for
    what no part does.
    """
    noise = getattr(block, "jitter_noise", 0.0)
    if noise:
        raise ConfigError(
            "block.jitter_noise", got=noise, expected="0", hint="Set it to 0: the layer has no such noise."
        )
    parts, sizes, act = parts_of(block)
    shared = _shared_of(block, act)
    dim, width, num_experts = sizes
    with torch.random.fork_rng(devices=[]):
        moe = MoE(dim, width, num_experts, act=act, shared=shared or 0, **parts)
    experts, gate = block.experts, block.gate
    with torch.no_grad():
        moe.router.scorer.weight = nn.Parameter(gate.weight.detach().clone())
        moe.pool.w1_EGD = nn.Parameter(experts.gate_up_proj.detach().clone())
        moe.pool.w2_EFO = nn.Parameter(experts.down_proj.detach().transpose(1, 2).contiguous())
        for mod in moe.router.mods:
            mod.bias_E, mod.load_E = gate.e_score_correction_bias.clone(), mod.load_E.to(gate.weight.device)
    return moe.train(block.training)


def write_back(moe: MoE, block: nn.Module) -> None:
    """Copy a layer's weights into a block, bit by bit: the inverse of `convert`.

    Raises: ShapeError or ConfigError (dtypes) before anything is changed.
    """
    pairs = {
        "gate.weight": (moe.router.scorer.weight, block.gate.weight),
        "experts.gate_up_proj": (moe.pool.w1_EGD, block.experts.gate_up_proj),
        "experts.down_proj": (moe.pool.w2_EFO.transpose(1, 2), block.experts.down_proj),
    }
    biases = [mod.bias_E for mod in moe.router.mods if isinstance(getattr(mod, "bias_E", None), Tensor)]
    if hasattr(block.gate, "e_score_correction_bias"):
        if len(biases) != 1:
            raise ConfigError("moe.router.mods", got=f"{len(biases)} biases", expected="one SelectionBias")
        pairs["gate.e_score_correction_bias"] = (biases[0], block.gate.e_score_correction_bias)
    elif any(bool(bias_E.any()) for bias_E in biases):
        raise ConfigError("moe.router.mods", got="a selection bias", expected="none: the block has no place for it")
    dense = shared_mlp(block)
    if (dense is None) != (moe.shared is None):
        raise ConfigError("moe.shared", got=type(moe.shared).__name__, expected=type(dense).__name__)
    if dense is not None:
        gate_GD, up_GD = moe.shared.w1.weight.chunk(2)
        pairs |= {
            "shared.gate_proj": (gate_GD, dense.gate_proj.weight),
            "shared.up_proj": (up_GD, dense.up_proj.weight),
            "shared.down_proj": (moe.shared.w2.weight, dense.down_proj.weight),
        }
        if hasattr(block, "shared_expert_gate"):
            pairs["shared_expert_gate"] = (moe.shared.gate.weight, block.shared_expert_gate.weight)
    for name, (source, target) in pairs.items():
        if source.shape != target.shape:
            raise ShapeError(name, got=tuple(source.shape), expected=tuple(target.shape))
        if source.dtype != target.dtype:
            raise ConfigError(name, got=str(source.dtype), expected=str(target.dtype))
    with torch.no_grad():
        for source, target in pairs.values():
            target.copy_(source)


def parts_of(block: nn.Module) -> tuple[dict[str, Any], tuple[int, int, int], str]:
    """The parts of a block, its (dim, width, num_experts) and activation."""
    family = type(block).__name__
    if family not in FAMILIES:
        raise UnknownNameError("expert block", family, FAMILIES)
    experts = block.experts
    fused = isinstance(getattr(experts, "gate_up_proj", None), Tensor)
    if not fused or getattr(experts, "is_transposed", False) or getattr(experts, "has_bias", False):
        expected = "the tensors gate_up_proj and down_proj of transformers 5"
        raise ConfigError("block.experts", got=type(experts).__name__, expected=expected)
    hidden_act = experts.config.hidden_act
    if hidden_act not in ACTIVATIONS:
        raise ConfigError("config.hidden_act", got=hidden_act, expected=f"one of {', '.join(ACTIVATIONS)}")
    num_experts, dim, width = experts.down_proj.shape
    return FAMILIES[family](block.gate), (dim, width, num_experts), ACTIVATIONS[hidden_act]


def shared_mlp(block: nn.Module) -> nn.Module | None:
    """The block's dense network with gate_proj, up_proj and down_proj."""
    dense = getattr(block, "shared_expert", None)
    return getattr(block, "shared_experts", None) if dense is None else dense


def _shared_of(block: nn.Module, act: str) -> FeedForward | None:
    """A copy of the block's shared expert."""
    dense = shared_mlp(block)
    if dense is None:
        return None
    gated = hasattr(block, "shared_expert_gate")
    made = feed_forward(dense, act, kind=GatedFeedForward if gated else FeedForward)
    if gated:
        made.gate.weight = nn.Parameter(block.shared_expert_gate.weight.detach().clone())
    return made


def feed_forward(mlp: nn.Module, act: str = "swiglu", *, kind: type[FeedForward] = FeedForward) -> FeedForward:
    """A copy of a dense network with gate_proj, up_proj and down_proj, for `surgery`. Raises: ConfigError (biases)."""
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if any(layer.bias is not None for layer in layers):
        raise ConfigError("mlp", got="biases", expected="matrices without a bias")
    with torch.random.fork_rng(devices=[]):
        made = kind(mlp.gate_proj.in_features, mlp.down_proj.in_features, act=act, out=mlp.down_proj.out_features)
    gate, up, down = (layer.weight.detach() for layer in layers)
    made.w1.weight, made.w2.weight = nn.Parameter(torch.cat([gate, up])), nn.Parameter(down.clone())
    return made
