"""Expert blocks of a transformers model run by our router and executor, in place; and what they decide, tapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import MissingExtraError
from polyroute.nn import dispatch
from polyroute.nn.activations import activation
from polyroute.nn.dispatch import Weights
from polyroute.nn.hf.blocks import blocks, parts_of, shared_mlp
from polyroute.nn.moe import MoE
from polyroute.nn.routing import Pairs, Part, Routing, TokenContext, count_pairs, in_recomputation

LINK = "polyroute_link"  # attribute of a block while our parts run it


def install(
    model: nn.Module,
    executor: str = "auto",
    *,
    mods: Sequence[Part] = (),
    norm: Part | None = None,
    select: Part | None = None,
    gate: Part | None = None,
    aux: Sequence[Part] = (),
    taps: Sequence[Part] = (),
) -> nn.Module:
    """Let our executor and router run every expert block of a model, in place, on the model's own parameters.

    mods: appended to each router's. norm, select, gate: instead of the family's, e.g. select=TopP(0.4). aux, taps: as
    in MoE; call `aux_losses` on each layer. Blocks keep their class, parameters, names and results, so training,
    `output_router_logits` and `save_pretrained` go on as before. `installed(model)` gives the layers;
    `restore(model)` takes them out.
    Returns the model. Raises: what `convert` raises, before anything is changed.
    """
    chosen = {name: part for name, part in {"norm": norm, "select": select, "gate": gate}.items() if part is not None}
    links = {}
    for i, (name, block) in enumerate(blocks(model).items()):
        parts, (dim, width, num_experts), act = parts_of(block)
        parts = {**parts, **chosen, "mods": (*parts.get("mods", ()), *mods), "aux": aux, "taps": taps}
        pool = _BlockExperts(block, act)
        with torch.random.fork_rng(devices=[]):
            moe = MoE(dim, width, num_experts, pool=pool, shared=_BlockShared(block), executor=executor, **parts)
        links[name] = _Link(block, moe.to(block.gate.weight.device), i)
    restore(model)
    for link in links.values():
        link.attach()
    return model


def installed(model: nn.Module) -> dict[str, MoE]:
    """The layers that `install` put in, by the name of their block: their router, last routing, taps and step."""
    return {name: getattr(part, LINK).moe for name, part in model.named_modules() if hasattr(part, LINK)}


def restore(model: nn.Module) -> nn.Module:
    """Take out what `install` put in. Weights stay as they are: they were the model's all along."""
    for part in model.modules():
        if hasattr(part, LINK):
            getattr(part, LINK).detach()
    return model


@contextmanager
def tap(
    model: nn.Module, *, each: Callable[[str, Routing], None] | None = None, valid: Tensor | None = None
) -> Iterator[dict[str, Routing]]:
    """Collect what each block decides: `with tap(model) as routings: model(ids)`, then name of the block -> Routing.

    The last forward pass stays in the dict; each: called with every one, for `generate`. valid: [B, L], the attention
    mask: transformers routes padding too, and with it statistics leave it out. Graphs are kept: use torch.no_grad().
    """
    found: dict[str, Routing] = {}
    handles = []
    for name, block in blocks(model).items():
        watch = _Watch(name, block, found, each, None if valid is None else valid.bool().reshape(-1))
        handles.append(block.register_forward_pre_hook(watch.enter))
        handles.append(block.gate.register_forward_hook(watch.decided))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def load_model(folder: str | Path, executor: str = "auto", **options: Any) -> nn.Module:
    """A causal language model from a folder of `save_pretrained`, its expert blocks installed.

    options: of transformers' from_pretrained, e.g. dtype. Raises: MissingExtraError, UnknownNameError.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    return install(AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options), executor)


class _BlockExperts(nn.Module):
    """The experts of a block as a pool: its own tensors, none of ours."""

    executors = dispatch.EXECUTORS

    def __init__(self, block: nn.Module, act: str):
        super().__init__()
        self.block, self.act = _Ref(block), activation(act)

    @property
    def num_experts(self) -> int:
        return self.block.module.experts.gate_up_proj.shape[0]

    def weights(self) -> Weights:
        experts = self.block.module.experts
        return Weights(experts.gate_up_proj, experts.down_proj.transpose(1, 2), self.act)

    def forward(self, x_TD: Tensor, routing: Routing, choose: str = "auto") -> Tensor:
        weights = self.weights()
        return dispatch.executor(choose, x_TD, routing, weights)(x_TD, routing, weights)


class _BlockShared(nn.Module):
    """The shared expert of a block, or 0."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = _Ref(block)

    def forward(self, x_TD: Tensor) -> Tensor:
        block = self.block.module
        dense = shared_mlp(block)
        if dense is None:
            return torch.zeros((), dtype=x_TD.dtype, device=x_TD.device)
        share = torch.sigmoid(block.shared_expert_gate(x_TD)) if hasattr(block, "shared_expert_gate") else 1.0
        return share * dense(x_TD)


@dataclass
class _Ref:
    """A module that is not to be registered as a part of its holder."""

    module: nn.Module


class _Link:
    """Between a block and the layer that runs it. Plain objects, so that a copied model has links of its own."""

    def __init__(self, block: nn.Module, moe: MoE, layer: int):
        self.block, self.moe, self.layer = block, moe, layer
        self.shape: tuple[int, int] | None = None
        self.handle: Any = None

    def attach(self) -> None:
        setattr(self.block, LINK, self)
        self.relink()
        self.handle = self.block.register_forward_pre_hook(self.enter)
        self.block.gate.forward, self.block.experts.forward = self.route, self.compute

    def detach(self) -> None:
        delattr(self.block, LINK)
        self.handle.remove()
        del self.block.gate.forward, self.block.experts.forward

    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self.shape = tuple(args[0].shape[:2]) if args and args[0].ndim == 3 else None

    def relink(self) -> None:
        """The block's tensors of this moment: moving a model replaces buffers, and leaves ours where they were."""
        gate, router = self.block.gate, self.moe.router
        if any(buffer.device != gate.weight.device for buffer in router.buffers()):
            self.moe.to(gate.weight.device)
        router.scorer.weight = gate.weight
        if hasattr(gate, "e_score_correction_bias"):
            router.mods[0].bias_E = gate.e_score_correction_bias
        self.moe.training = self.block.training

    def route(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Instead of the gate: (logits [T, E], weights [T, K], index [T, K]); where K varies, index E and weight 0."""
        self.relink()
        moe, x_TD = self.moe, hidden_states.reshape(-1, self.moe.dim)
        shape = self.shape if self.shape and self.shape[0] * self.shape[1] == len(x_TD) else (1, len(x_TD))
        ctx = TokenContext(x_TD, shape, layer=self.layer, step=moe.step, training=moe.training)
        routing = moe.routing = moe.router(ctx)
        if not (ctx.training and in_recomputation()):
            for part in (*moe.aux, *moe.taps):
                if hasattr(part, "observe"):
                    part.observe(routing, ctx)
        native = torch.float32 if "Deepseek" in type(self.block).__name__ else hidden_states.dtype
        return routing.logits_TE.to(native), *_slots(routing)

    def compute(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Instead of the experts: what the gate said, by our executor."""
        moe = self.moe
        fixed = moe.routing is None or moe.routing.K is not None
        routing = _routing(top_k_index, top_k_weights, moe.router.num_experts, moe.routing, fixed=fixed)
        return moe.pool(hidden_states, routing, moe.executor)


def _slots(routing: Routing) -> tuple[Tensor, Tensor]:
    """weights [T, K], index [T, K]; for K that varies the largest, filled up with expert E at weight 0."""
    if routing.K is not None:
        return routing.gate_N.reshape(-1, routing.K), routing.exp_N.reshape(-1, routing.K)
    per_token = count_pairs(routing.tok_N, routing.num_tokens)
    most = max(int(per_token.max()) if routing.num_tokens else 0, 1)
    slot_N = (
        torch.arange(len(routing.tok_N), device=routing.tok_N.device) - (per_token.cumsum(0) - per_token)[routing.tok_N]
    )
    index = routing.exp_N.new_full((routing.num_tokens, most), routing.num_experts)
    weights = routing.gate_N.new_zeros(routing.num_tokens, most)
    index[routing.tok_N, slot_N] = routing.exp_N
    return weights.index_put((routing.tok_N, slot_N), routing.gate_N), index


def _routing(
    index_TK: Tensor, weights_TK: Tensor, num_experts: int, like: Routing | None, *, fixed: bool, **known: Any
) -> Routing:
    """The Routing of a gate's answer; slots of expert E are empty."""
    pairs, gate_N = Pairs.of_index(index_TK), weights_TK.float().reshape(-1)
    if not fixed:
        used = pairs.exp_N < num_experts
        pairs, gate_N = Pairs(pairs.tok_N[used], pairs.exp_N[used], None), gate_N[used]
    fields: dict[str, Any] = {
        "logits_TE": weights_TK.new_empty(0) if like is None else like.logits_TE,
        "probs_TE": None if like is None else like.probs_TE,
        "shape": (1, len(index_TK)) if like is None else like.shape,
    }
    count_E = count_pairs(pairs.exp_N, num_experts)
    sizes: Mapping[str, Any] = {"num_tokens": len(index_TK), "num_experts": num_experts, "count_E": count_E}
    return Routing(tok_N=pairs.tok_N, exp_N=pairs.exp_N, gate_N=gate_N, K=pairs.K, **sizes, **{**fields, **known})


class _Watch:
    """Hooks on one block for `tap`."""

    def __init__(
        self,
        name: str,
        block: nn.Module,
        found: dict[str, Routing],
        each: Callable[[str, Routing], None] | None,
        valid_T: Tensor | None,
    ):
        self.name, self.block, self.found, self.each, self.valid_T = name, block, found, each, valid_T
        self.norm = parts_of(block)[0]["norm"]
        self.shape: tuple[int, int] | None = None

    def enter(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self.shape = tuple(args[0].shape[:2])

    def decided(self, gate: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, weights, index = output
        link = getattr(self.block, LINK, None)
        logits_TE = logits.float()
        routing = _routing(
            index,
            weights,
            logits.shape[-1],
            None,
            fixed=link is None or link.moe.routing.K is not None,
            logits_TE=logits_TE,
            probs_TE=self.norm(logits_TE, None) if link is None else link.moe.routing.probs_TE,
            shape=self.shape or (1, len(logits)),
        )
        if self.valid_T is not None and len(self.valid_T) == routing.num_tokens:
            kept = self.valid_T.to(routing.tok_N.device)
            chosen = kept[routing.tok_N]
            routing.tok_N, routing.exp_N = routing.tok_N[chosen], routing.exp_N[chosen]
            routing.gate_N, routing.K, routing.valid_T = routing.gate_N[chosen], None, kept
            routing.count_E = count_pairs(routing.exp_N, routing.num_experts)
        self.found[self.name] = routing
        if self.each is not None:
            self.each(self.name, routing)
