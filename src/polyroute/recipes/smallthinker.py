"""System 21, SmallThinker: route before attention, so that experts are read from slow storage while attention runs.

The router reads the raw residual stream before the block's attention (after it there would be nothing to hide behind);
top-k on logits, sigmoid, renormalised. ReGLU experts leave half of their neurons and more at 0, which need not be read
at all. Parts: PreAttention, Sigmoid, TopK, Renorm, LBL(group), nn/sparse.py, nn/prefetch.py.
Source: arXiv:2507.20984.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.corpora import Batch
    from polyroute.nn.moe import MoE
    from polyroute.nn.prefetch import Stalls
    from polyroute.nn.transformer import TinyLM


def smallthinker(
    dim: int, width: int, num_experts: int = 32, *, k: int = 4, balance: float = 1e-2, z: float = 1e-3, **options: Any
) -> MoE:
    """The layer; it wants a TokenContext with `pre_attention_TD`, which the blocks of nn/transformer.py pass.

    The published models: dim 1536, 32 experts, k 4, and dim 2560, 64 experts, k 6; width 768. balance: of the load
    over a data-parallel group. z: the stream grows with depth, so logits are held small (inferred). options: further
    arguments of MoE.
    """
    from polyroute.nn.gates import Renorm
    from polyroute.nn.inputs import PreAttention
    from polyroute.nn.losses import LBL, ZLoss
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import Sigmoid
    from polyroute.nn.selection import TopK

    aux: list[Any] = [LBL(balance, "group")] * bool(balance) + [ZLoss(z)] * bool(z)
    parts = {"inp": PreAttention(), "norm": Sigmoid(), "select": TopK(k, on="logits"), "gate": Renorm()}
    return MoE(dim, width, num_experts, **{**parts, "act": "reglu", "aux": aux, **options})


def smallthinker_lm(
    vocab: int, dim: int, num_layers: int, num_heads: int, width: int, num_experts: int = 32, *,
    context: int = 256, **options: Any,
) -> TinyLM:  # fmt: skip
    """A language model with this layer in every block. options: those of `smallthinker`."""
    from polyroute.nn.transformer import TinyLM

    def part(_: int) -> nn.Module:
        return smallthinker(dim, width, num_experts, **options)

    return TinyLM(vocab, dim, num_layers, num_heads, part, context=context)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a token waits for experts, in units of t_io, when they are known..."""

    after_attention: Stalls
    before_attention: Stalls
    last_token: Stalls  # ...and when those of the token before are fetched as a guess

    @property
    def saved(self) -> float:
        """Share of the stall that routing before attention takes away."""
        return self.before_attention.saved(self.after_attention)

    @property
    def saved_by_guess(self) -> float:
        """Share of it that fetching the last token's experts takes away; below 0 where it costs."""
        return self.last_token.saved(self.after_attention)


def serving(
    model: nn.Module, batches: Iterable[Batch], *, cached: float = 0.5, t_io: float = 1.0, t_attention: float = 1.0,
    min_tokens: int = 2000,
) -> Serving:  # fmt: skip
    """Simulate a model that reads its experts through one cache, on a text, one token at a time.

    cached: the cache over all experts of all layers. t_io: to read one expert; t_attention: one layer's attention.
    """
    from polyroute.nn.prefetch import last_token, simulate
    from polyroute.recipes.routing_locality import traces

    read = traces(model, batches, min_tokens=min_tokens)
    masks = [trace.mask_TE for trace in read.values()]
    lengths = next(iter(read.values())).lengths
    size = round(cached * sum(mask.shape[1] for mask in masks))
    early = {"after_attention": None, "before_attention": masks, "last_token": last_token(masks)}
    return Serving(**{
        name: simulate(masks, size, t_io=t_io, t_attention=t_attention, early=known, lengths=lengths)
        for name, known in early.items()
    })  # fmt: skip


def idle_neurons(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Share of an expert's neurons with a gate of 0, mean over the tokens of one batch: layer -> share."""
    import torch

    from polyroute.nn.moe import layers
    from polyroute.nn.sparse import neuron_sparsity

    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0])

    found = layers(model)
    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in found.items()]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(next(iter(batches)).x)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    shares = {}
    for name, layer in found.items():
        pool: Any = layer.pool
        if layer.routing is not None:
            shares[name] = float(neuron_sparsity(seen[name].flatten(0, -2), layer.routing, pool.weights()).mean())
    return shares
