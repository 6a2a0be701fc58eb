"""One router for all layers that reads token ids alone, and what it is taught: routes are known before the model runs.

network = TokenRouter(vocab, 64, num_experts=7)
MoE(..., inp=TokenStream(network), scorer=AsGiven(), select=TopK(1), gate=Hard(1.0))   # in every layer
routes_BL = network(ids_BL).argmax(-1)                                                 # before the forward pass
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.experts import FeedForward
from polyroute.nn.transformer import Stack

LEVELS = (1.0, 0.8, 0.6, 0.4, 0.2)  # shares of an expert's private width at which a neuron's rank counts


class TokenRouter(nn.Module):
    """A causal transformer of one block: ids [B, L] -> logits [B, L, E]. For TokenStream; width is E.

    tokens: an embedding to start from, copied, as the language model's own. Source: Read-ME (arXiv:2410.19123).
    """

    def __init__(
        self, vocab: int, dim: int, num_experts: int, *, num_heads: int = 4, context: int = 256,
        tokens: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        self.width, self.context = num_experts, context
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        nn.init.normal_(self.positions.weight, std=0.5)
        if tokens is not None:
            if tuple(tokens.shape) != (vocab, dim):
                raise ShapeError("tokens", got=tuple(tokens.shape), expected=(vocab, dim))
            self.tokens.weight.data.copy_(tokens.detach())
        self.stack = Stack(dim, 1, num_heads, lambda layer: FeedForward(dim, 2 * dim))
        self.head = nn.Linear(dim, num_experts)

    def forward(self, ids_BL: Tensor) -> Tensor:
        if ids_BL.ndim != 2 or ids_BL.shape[1] > self.context:
            raise ShapeError("ids", got=tuple(ids_BL.shape), expected=("B", f"L up to {self.context}"))
        x_BLD = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        return self.head(self.stack(x_BLD, ids_BL, None))


@dataclass(frozen=True)
class AsGiven:
    """A scorer that takes the input as logits: for inputs that are a router of their own."""

    def build(self, dim: int, num_experts: int) -> AsGiven:
        if dim != num_experts:
            raise ConfigError(
                "scorer", got=f"an input of width {dim}", expected=f"{num_experts}, the number of experts"
            )
        return self

    def __call__(self, r_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
        return r_TE.float()


@torch.no_grad()
def affinity(activations: Mapping[str, Tensor], private: Mapping[str, Tensor]) -> Tensor:
    """How much of each expert a token's strongest neurons are, summed over layers, centred, times 10: [T, E].

    activations: layer -> what the frozen dense network's second matrix reads [T, F], signed as published. private:
    layer -> bool [E, F], neurons an expert has beyond those of all. A neuron counts a fifth for each of five cuts of
    the token's ranking that it is above; cuts are shares of the private width. Source: Read-ME (arXiv:2410.19123).
    """
    if set(activations) != set(private):
        raise ConfigError("private", got=sorted(private), expected=f"the layers of activations: {sorted(activations)}")
    total: Tensor | float = 0.0
    for name, a_TF in activations.items():
        private_EF = private[name].to(a_TF.device)
        width = min(max(int(private_EF.sum(-1).float().mean()), 1), a_TF.shape[-1])
        ranked = a_TF.float().sort(-1, descending=True).values
        cuts = [min(max(int(level * width), 1), width) - 1 for level in LEVELS]
        score_TF = torch.stack([(a_TF > ranked[:, cut : cut + 1]).float() for cut in cuts]).sum(0)
        total = total + score_TF @ private_EF.T.float() / (3 * width)
    assert isinstance(total, Tensor)
    return (total - total.mean()) * 10


def distillation(logits_TE: Tensor, affinity_TE: Tensor) -> Tensor:
    """What the router is taught by: its best expert, smoothed, and a quarter of the cross entropy of all affinities."""
    best = F.cross_entropy(logits_TE.float(), affinity_TE.argmax(-1), label_smoothing=0.5)
    soft = -(affinity_TE.softmax(-1) * logits_TE.float().log_softmax(-1)).sum(-1).mean()
    return 0.75 * best + 0.25 * soft
