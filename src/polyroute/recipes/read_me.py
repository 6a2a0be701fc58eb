"""System 6, Read-ME (arXiv:2410.19123): a dense model into a small mixture, one router for all layers from token ids.

Neurons that every domain needs are always on; the rest of what a domain needs is its expert. The same expert runs in
every layer, so routes are known before the forward pass: requests can be batched by expert and caches can be optimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyroute.nn.experts import FeedForward
    from polyroute.nn.token_router import TokenRouter


@dataclass
class ReadMe:
    """The converted model with what it was made from."""

    model: nn.Module
    router: TokenRouter  # shared by all layers; router(ids).argmax(-1) are the routes
    dense: nn.Module  # frozen
    private: Mapping[str, Tensor]  # layer -> bool [J, F], neurons of each expert beyond those of all

    def router_loss(self, ids_BL: Tensor) -> Tensor:
        """What the router is taught by on a text, from the dense model's neurons. Train it alone with this."""
        from polyroute.nn.token_router import affinity, distillation
        from polyroute.nn.transplant import activations

        goal = affinity(activations(self.dense, ids_BL), self.private)
        return distillation(self.router(ids_BL).flatten(0, 1), goal)


def domain_masks(model: nn.Module, texts: Mapping[str, Tensor], keep: float = 0.5) -> dict[str, Tensor]:
    """Layer -> which neurons each domain needs, bool [J, F]. texts: domain -> ids [B, L]."""
    from polyroute.nn.surgery import neuron_masks
    from polyroute.nn.transplant import activations

    read = {domain: activations(model, ids) for domain, ids in texts.items()}
    layers = next(iter(read.values()))
    return {layer: neuron_masks({domain: found[layer] for domain, found in read.items()}, keep) for layer in layers}


def read_me(model: nn.Module, masks: Mapping[str, Tensor], router: TokenRouter) -> ReadMe:
    """Cut every dense network of a model by its masks; the router chooses one expert for a token, in all layers.

    masks: of `domain_masks`, layer -> bool [J, F]. Then rounds of router steps (`router_loss`, the model frozen) and
    model steps (its own loss, the router frozen: hard gates pass it no gradient); published are 5 of 100 and 200.
    """
    import copy

    from polyroute.nn.gates import Hard
    from polyroute.nn.inputs import TokenStream
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK
    from polyroute.nn.surgery import masked_experts
    from polyroute.nn.token_router import AsGiven
    from polyroute.nn.transplant import transplant

    def cut(name: str, network: FeedForward) -> MoE:
        made = masked_experts(network, masks[name])
        return MoE(
            network.w1.in_features,
            made.private.w2_EFO.shape[1],
            len(masks[name]),
            inp=TokenStream(router),
            scorer=AsGiven(),
            select=TopK(1),
            gate=Hard(1.0),
            pool=made.private,
            shared=0 if made.always is None else made.always,
        )

    dense = copy.deepcopy(model).requires_grad_(False).eval()
    private = {name: mask & ~mask.all(0) for name, mask in masks.items()}
    return ReadMe(transplant(model, cut), router, dense, private)
