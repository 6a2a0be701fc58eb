"""System 56, expert upcycling: a trained network's E experts a layer become m x E in the middle of training.

Experts, their router rows and the optimizer's moments are copied, whole or by utility; only the selection bias of
copies is disturbed, so that twins part; training goes on with balance by that bias. Parts: nn/upcycling, nn/normalise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from polyroute.recipes.moe_baselines import sigmoid_bias

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from polyroute.nn.moe import MoE


class Grown(NamedTuple):
    """The model, the same object unless it is itself a layer, and for each layer whom every expert was copied from."""

    model: nn.Module
    source_E: dict[str, Tensor]  # layer -> int64 [m E]; the first E are the old ones


def upcyclable(dim: int, width: int, num_experts: int, *, k: int = 2, rate: float = 1e-3, **parts: Any) -> MoE:
    """The layer to begin with: sigmoid scores and balance by a selection bias, which growth keeps."""
    return sigmoid_bias(dim, width, num_experts, k=k, rate=rate, **parts)


def expert_upcycling(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    m: int = 2,
    score: str = "uniform",
    exact_start: bool = False,
    seed: int = 0,
    **options: Any,
) -> Grown:
    """Grow every MoE layer of a model, in place; the optimizer goes on with the grown weights.

    score: who is copied, "uniform" or by utility ("weight", "gradient", "saliency", "moment"; those after the first two
    need the gradients of the last step). exact_start: the function is as before at first, and copies come in slowly;
    otherwise it changes wherever k > 1, since twins are chosen together. options: see nn/upcycling.upcycle.

        train(model, ..., optimizer=optimizer)
        model = expert_upcycling(model, optimizer, score="saliency").model
        train(model, ..., optimizer=optimizer)
    """
    from polyroute.nn.moe import layers
    from polyroute.nn.upcycling import upcycle

    sources = {}
    for place, (name, layer) in enumerate(layers(model).items()):
        grown = upcycle(layer, optimizer, m, score, exact_start=exact_start, seed=seed + place, **options)
        sources[name] = grown.source_E
        if not name:
            model = grown.moe
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, grown.moe)
    return Grown(model, sources)


def twin_cosine(layer: MoE, source_E: Tensor) -> float:
    """Mean cosine between the weights of each copy and its source; 1 right after growth."""
    num_old = int(source_E.max()) + 1
    copies = range(num_old, len(source_E))
    weights: list[Tensor] = [layer.pool.get_parameter(name).detach().flatten(1) for name in ("w1_EGD", "w2_EFO")]

    def cosine(i: int, j: int) -> float:
        dot = sum(float(w[i] @ w[j]) for w in weights)
        norms = [sum(float(w[e] @ w[e]) for w in weights) ** 0.5 for e in (i, j)]
        return float(dot / max(norms[0] * norms[1], 1e-12))

    return sum(cosine(e, int(source_E[e])) for e in copies) / len(copies)
