"""System 79, multilingual routing: how differently languages use the experts, and middle layers steered to a task's.

Divergence of mean scores over parallel sequences, layer by layer; the experts that a task in a well-learned language
uses more than its other text; their logits raised in the middle layers for another language. Published figures have the
divergence low in the middle layers; nothing here assumes it. Parts: divergence, find_experts, steering, Steer.
Source: Multilingual routing in mixture-of-experts (arXiv:2510.04694).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from polyroute.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyroute.nn.corpora import Batch


def sequence_scores(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Mean scores of each sequence: layer -> [N, E]. Padding is left out; nothing is trained."""
    from polyroute.nn.manifold import collect_routes
    from polyroute.nn.moe import layers

    batches = list(batches)
    return {name: collect_routes(model, batches, token="mean", layers=[name]) for name in layers(model)}


def language_divergence(
    model: nn.Module, language: Iterable[Batch], pivot: Iterable[Batch], *, normalised: bool = True
) -> dict[str, float]:
    """How differently the same content is routed in two languages: layer -> mean divergence over aligned sequences."""
    from polyroute.nn.metrics import divergence

    found, other = sequence_scores(model, language), sequence_scores(model, pivot)
    for name, p_NE in found.items():
        if p_NE.shape != other[name].shape:
            raise ShapeError("pivot", got=tuple(other[name].shape), expected=tuple(p_NE.shape))
    return {name: float(divergence(p, other[name], normalised=normalised).mean()) for name, p in found.items()}


def frequencies(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Share of a sequence's tokens that use each expert, mean over sequences: layer -> [E]."""
    import torch

    from polyroute.nn.metrics import profile
    from polyroute.nn.moe import routings

    sums: dict[str, Tensor] = {}
    total, training = 0, model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch.x)
            total += len(batch.x)
            for name, routing in routings(model).items():
                part = profile(routing, "sequence").frequency_E * len(batch.x)
                sums[name] = sums[name] + part if name in sums else part
    model.train(training)
    return {name: value / total for name, value in sums.items()}


def middle_layers(model: nn.Module) -> list[str]:
    """The names of the middle third of the mixture layers, at least one."""
    from polyroute.nn.moe import layers

    names = list(layers(model))
    third = len(names) // 3
    return names[third : len(names) - third] if third else names[len(names) // 2 :][:1]


def task_experts_of(
    model: nn.Module, task: Iterable[Batch], base: Iterable[Batch], *, tau: float = 0.3,
    layers: Sequence[str] | None = None,
) -> dict[str, list[int]]:  # fmt: skip
    """Experts a task uses more than other text of the same, well-learned language does. layers: None: the middle."""
    from polyroute.nn.rerouting import find_experts

    names = middle_layers(model) if layers is None else layers
    return find_experts(frequencies(model, task), frequencies(model, base), tau=tau, layers=names)


def steered(
    model: nn.Module, experts: dict[str, list[int]], *, strength: float = 0.5, mode: str = "soft"
) -> AbstractContextManager[None]:
    """The model with these experts raised inside: `with steered(model, task_experts_of(model, ...)): ...`."""
    from polyroute.nn.rerouting import steering

    return steering(model, experts, strength=strength, mode=mode)
