"""System 77, local routing consistency: can a mixture-of-experts model be served with few experts in fast memory?

Two numbers for any model: SRP, how well one decision for m tokens stands for m decisions, and SCH, what a cache of
experts catches. Nothing is trained or changed; `layers(model)` only have to be of nn/moe.py, also those that nn/hf.py
converted. Source: Liang et al. 2025 (arXiv:2505.16056).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from polyroute.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.corpora import Batch
    from polyroute.nn.locality import Used


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """How local the routing of a model is. Rates and F1 are shares, 0 to 1."""

    srp: Mapping[int, float]  # window m -> F1 of the best segment router, one threshold for all layers and experts
    size_ratio: Mapping[int, float]  # m -> activations that router makes over those there are
    sch: Mapping[float, float]  # rho -> hit rate of the look-ahead cache of rho x K experts a layer
    lru: Mapping[float, float]  # rho -> hit rate of a cache that drops the longest unused
    layers: Mapping[str, Mapping[int, float]]  # layer -> m -> its own SRP
    mean_k: float  # experts a token and layer
    tokens: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def traces(model: nn.Module, batches: Iterable[Batch], *, min_tokens: int = 10_000) -> dict[str, Used]:
    """Which experts every token uses in each layer, read from a model without changing it: layer -> Used.

    batches: of token ids or features; sequences are documents, no window crosses two.
    Raises: ConfigError when no batch or no layer is there.
    """
    import torch

    from polyroute.nn.locality import Used, used
    from polyroute.nn.moe import routings

    found: dict[str, list[Used]] = {}
    tokens, training = 0, model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.x)
                for name, routing in routings(model).items():
                    found.setdefault(name, []).append(used(routing))
                tokens += batch.x.shape[0] * batch.x.shape[1]
                if tokens >= min_tokens:
                    break
    finally:
        model.train(training)
    if not found:
        raise ConfigError("model, batches", got="nothing routed", expected="a batch, and a model with MoE layers")
    return {
        name: Used(torch.cat([part.mask_TE for part in parts]), torch.cat([part.lengths for part in parts]))
        for name, parts in found.items()
    }


def consistency(
    read: Mapping[str, Used], *, m: Sequence[int] = (4, 16, 64), rho: Sequence[float] = (1.0, 2.0), ahead: int = 16
) -> Consistency:
    """SRP and cache hit rates of the layers read by `traces`.

    m: windows, tokens. rho: size of each layer's cache over the mean number of experts a token; never below what one
    token needs. ahead: tokens the SCH cache looks ahead.
    """
    import torch

    from polyroute.nn.locality import hit_rate, sch, segment_routing, window_histogram

    histograms = {name: {w: window_histogram(mask, w, lengths) for w in m} for name, (mask, lengths) in read.items()}
    pooled = {w: segment_routing(torch.cat([layer[w] for layer in histograms.values()])) for w in m}
    uses = {name: int(mask.sum()) for name, (mask, _) in read.items()}
    tokens = max(len(mask) for mask, _ in read.values())
    mean_k = sum(uses.values()) / max(tokens * len(read), 1)

    def over_layers(rates: Mapping[str, float]) -> float:
        return sum(rates[name] * uses[name] for name in read) / max(sum(uses.values()), 1)

    def size(share: float, name: str) -> int:
        return max(round(share * uses[name] / max(tokens, 1)), int(read[name].mask_TE.sum(-1).max()), 1)

    sch_by, lru_by = {}, {}
    for share in rho:
        sizes = {name: size(share, name) for name in read}
        sch_by[share] = over_layers({n: sch(t.mask_TE, sizes[n], ahead, lengths=t.lengths) for n, t in read.items()})
        lru_by[share] = over_layers({n: hit_rate(t.mask_TE, sizes[n], lengths=t.lengths) for n, t in read.items()})
    return Consistency(
        srp={w: best.srp for w, best in pooled.items()},
        size_ratio={w: best.size_ratio for w, best in pooled.items()},
        sch=sch_by,
        lru=lru_by,
        layers={name: {w: segment_routing(h).srp for w, h in layer.items()} for name, layer in histograms.items()},
        mean_k=mean_k,
        tokens=tokens,
    )


def local_routing(
    model: nn.Module, batches: Iterable[Batch], *, min_tokens: int = 10_000, **options: Any
) -> Consistency:
    """`consistency` of `traces`: SRP and SCH of a model on a text. options: those of `consistency`."""
    return consistency(traces(model, batches, min_tokens=min_tokens), **options)
