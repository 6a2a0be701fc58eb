"""Part 5, the weight of each chosen expert's output: normalised scores and pairs -> gate [N], fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyroute.nn.routing import Pairs


def score_of(probs: Tensor | tuple[Tensor, Tensor], pairs: Pairs) -> Tensor:
    """The normalised score of each pair [N]; of product keys exp(row + column). Passes gradients."""
    if isinstance(probs, tuple):
        row, column = probs
        i = pairs.exp_N.div(column.shape[-1], rounding_mode="floor")
        return (row[pairs.tok_N, i] + column[pairs.tok_N, pairs.exp_N - i * column.shape[-1]]).exp()
    if pairs.K is not None:
        return probs.gather(1, pairs.exp_N.reshape(-1, pairs.K)).reshape(-1)
    return probs[pairs.tok_N, pairs.exp_N]


def sums_of_tokens(values_N: Tensor, pairs: Pairs, num_tokens: int) -> Tensor:
    """The sum over each token's pairs, for each pair [N]."""
    if pairs.K is not None:
        return values_N.reshape(-1, pairs.K).sum(-1, keepdim=True).expand(-1, pairs.K).reshape(-1)
    sums_T = values_N.new_zeros(num_tokens).index_add(0, pairs.tok_N, values_N)
    return sums_T[pairs.tok_N]


@dataclass(frozen=True)
class Raw:
    """The score itself, times `scale`. What a token gets then also says how sure its router is."""

    scale: float = 1.0

    def build(self, dim: int, num_experts: int) -> Raw:
        return self

    def __call__(self, probs: Tensor | tuple[Tensor, Tensor], pairs: Pairs, num_tokens: int) -> Tensor:
        score = score_of(probs, pairs)
        return score if self.scale == 1.0 else score * self.scale


@dataclass(frozen=True)
class Renorm:
    """The score over the sum of the token's chosen scores, times `scale` (2.5 in DeepSeek-V3).

    With one expert a token it is constant, and the router learns nothing from the task.
    """

    scale: float = 1.0

    def build(self, dim: int, num_experts: int) -> Renorm:
        return self

    def __call__(self, probs: Tensor | tuple[Tensor, Tensor], pairs: Pairs, num_tokens: int) -> Tensor:
        score = score_of(probs, pairs)
        total = sums_of_tokens(score, pairs, num_tokens)
        return score / total.clamp(min=torch.finfo(score.dtype).tiny) * self.scale


@dataclass(frozen=True)
class ChosenSoftmax:
    """Softmax of the chosen scores alone, for scores that are logits (T2MIR) or sigmoids."""

    def build(self, dim: int, num_experts: int) -> ChosenSoftmax:
        return self

    def __call__(self, probs: Tensor | tuple[Tensor, Tensor], pairs: Pairs, num_tokens: int) -> Tensor:
        score = score_of(probs, pairs)
        raised = (score - score.detach().max()).exp() if score.numel() else score
        return raised / sums_of_tokens(raised, pairs, num_tokens)


@dataclass(frozen=True)
class Hard:
    """The same constant for every chosen expert; the router gets no gradient from the task."""

    scale: float = 1.0

    def build(self, dim: int, num_experts: int) -> Hard:
        return self

    def __call__(self, probs: Tensor | tuple[Tensor, Tensor], pairs: Pairs, num_tokens: int) -> Tensor:
        return torch.full((len(pairs.exp_N),), self.scale, dtype=torch.float32, device=pairs.exp_N.device)
