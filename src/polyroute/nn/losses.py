"""Part 8, auxiliary objectives on what a router decided: balance, size of logits, doubt.

Each class describes an objective; built, it is called `objective(routing, layer) -> scalar` (fp32, without its
coefficient, padding left out, 0 with a gradient for an empty batch) and collected by `moe.aux_losses`. Those that
couple routers with experts stand in nn/coupling.py, those that make neighbours share experts in nn/continuity.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.nn.routing import Routing, count_pairs, require_k

SCOPES = ("micro", "sequence", "group", "global")


def mean_of_tokens(values_T: Tensor, routing: Routing) -> Tensor:
    """The mean over tokens that are not padding; 0 when there are none."""
    if routing.valid_T is None:
        return values_T.sum() / max(routing.num_tokens, 1)
    return torch.where(routing.valid_T, values_T, 0.0).sum() / routing.valid_T.sum().clamp(min=1)


def shares_TE(routing: Routing) -> Tensor:
    """Normalised scores with every row summing to 1 (sigmoids and ReLUs too); a row without mass stays 0."""
    if routing.probs_TE is None:
        row, column = routing.logits_TE
        return (row.softmax(-1)[:, :, None] * column.softmax(-1)[:, None, :]).flatten(1)
    probs = routing.probs_TE.float()
    return probs / probs.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def mean_shares(routing: Routing, parts: int = 1) -> Tensor:
    """The mean share of each expert [parts, E] over the tokens, cut into equal parts; rows sum to 1, or 0 if empty.

    For product keys it is one matrix product of the two axes, without a [T, E].
    """
    each = routing.num_tokens // max(parts, 1)
    with torch.autocast(routing.exp_N.device.type, enabled=False):
        if routing.probs_TE is None:
            row, column = (axis.float().softmax(-1) for axis in routing.logits_TE)
            row = row if routing.valid_T is None else torch.where(routing.valid_T[:, None], row, 0.0)
            row = row.reshape(parts, each, row.shape[1]).transpose(1, 2)
            total = torch.bmm(row, column.reshape(parts, each, column.shape[1])).flatten(1)
        else:
            probs = routing.probs_TE.float()
            weight_T = 1.0 / probs.sum(-1).clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
            weight_T = weight_T if routing.valid_T is None else torch.where(routing.valid_T, weight_T, 0.0)
            if parts == 1:
                total = (weight_T @ probs)[None]
            else:
                shares = probs.reshape(parts, each, routing.num_experts)
                total = torch.bmm(weight_T.reshape(parts, 1, each), shares)[:, 0]
    mass = total.detach().sum(-1, keepdim=True)
    return total / torch.where(mass > 0, mass, 1.0)


def entropies(routing: Routing) -> Tensor:
    """The entropy of each token's shares [T], nats; of product keys the sum of both axes."""
    if routing.probs_TE is None:
        return sum(_entropy(axis.float().softmax(-1)) for axis in routing.logits_TE)
    return _entropy(shares_TE(routing))


def _entropy(p_TE: Tensor) -> Tensor:
    return -(p_TE * p_TE.clamp(min=torch.finfo(torch.float32).tiny).log()).sum(-1)


def squared_variation(values_E: Tensor, open_E: Tensor | None = None) -> Tensor:
    """The squared coefficient of variation, (standard deviation / mean)^2, over open experts; population variance."""
    weight = torch.ones_like(values_E) if open_E is None else open_E.to(values_E.dtype)
    mean = (values_E * weight).sum() / weight.sum().clamp(min=1)
    variance = ((values_E - mean).square() * weight).sum() / weight.sum().clamp(min=1)
    return variance / mean.square().clamp(min=1e-10)


@dataclass(frozen=True)
class LBL:
    """Load balance: E x sum over experts of (share of the pairs x mean probability). 1 at balance, E at collapse.

    scope: where pairs are counted. "micro": this micro-batch on this rank. "sequence": each sequence for itself, then
    the mean. "group": this micro-batch over the ranks of `group`. "global": every rank and every micro-batch since
    the last `end_step(model)`; sequences of one domain may then use few experts. Probabilities are always those of
    this micro-batch and rank, with gradient; counts have none. The share is of all pairs, so the value is 1 at
    balance for any number of experts a token. With a CandidateMask, E is the number of open experts.

    Source: Switch transformer (arXiv:2101.03961); global scope: Qiu et al. 2025 (arXiv:2501.11873).
    """

    coef: float = 0.01
    scope: str = "micro"
    group: Any = None  # a torch.distributed process group; None: all ranks

    def build(self, dim: int, num_experts: int) -> nn.Module:
        if self.scope not in SCOPES:
            raise UnknownNameError("scope", self.scope, SCOPES)
        return LoadBalance(num_experts, self)


class LoadBalance(nn.Module):
    """See LBL. count_E: pairs since the last step (global scope); it starts again with each, so it is not saved."""

    name = "load_balance"

    def __init__(self, num_experts: int, config: LBL):
        super().__init__()
        self.coef, self.scope, self.group = config.coef, config.scope, config.group
        self.register_buffer("count_E", torch.zeros(num_experts, dtype=torch.int64), persistent=False)
        self._counted: Tensor | None = None  # counts of the routing that was added last

    def forward(self, routing: Routing, layer: Any) -> Tensor:
        per_sequence = self.scope == "sequence"
        parts = routing.shape[0] if per_sequence else 1
        with torch.no_grad():
            count = sequence_counts(routing) if per_sequence else self._count(routing, layer)[None]
            num_pairs = count.sum(-1, keepdim=True)
            share = count / num_pairs.clamp(min=1)
            num_open = routing.num_experts if routing.open_E is None else routing.open_E.sum()
        balance = num_open * (share * mean_shares(routing, parts)).sum(-1)
        return balance.sum() / (num_pairs > 0).sum().clamp(min=1)

    def _count(self, routing: Routing, layer: Any) -> Tensor:
        if self.scope == "micro":
            return routing.count_E
        if self.scope == "global" and routing.count_E is self._counted:
            return self.count_E  # asked twice about one micro-batch
        count = routing.count_E.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count, group=self.group)
        if self.scope == "group":
            return count
        if not getattr(layer, "training", True):
            return self.count_E + count
        self.count_E += count
        self._counted = routing.count_E
        return self.count_E.clone()

    def end_step(self) -> None:
        """Count the next optimizer step from 0."""
        self.count_E.zero_()
        self._counted = None

    def extra_repr(self) -> str:
        return f"coef={self.coef}, scope={self.scope}"


def sequence_counts(routing: Routing) -> Tensor:
    """Pairs of each expert in each sequence [B, E]."""
    num_sequences, length = routing.shape
    place_N = routing.tok_N.div(max(length, 1), rounding_mode="floor") * routing.num_experts + routing.exp_N
    count = count_pairs(place_N, num_sequences * routing.num_experts)
    return count.reshape(num_sequences, routing.num_experts)


@dataclass(frozen=True)
class ZLoss:
    """Mean of logsumexp(logits)^2: keeps logits small, where fp32 and bf16 agree. Product keys: the sum of both axes.

    Source: ST-MoE (arXiv:2202.08906).
    """

    coef: float = 1e-3
    name: ClassVar[str] = "z"

    def build(self, dim: int, num_experts: int) -> ZLoss:
        return self

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        axes = routing.logits_TE if isinstance(routing.logits_TE, tuple) else (routing.logits_TE,)
        return sum(mean_of_tokens(axis.float().logsumexp(-1).square(), routing) for axis in axes)


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of the scores, nats: without it top-p routers drift towards flat and use more experts.

    Source: Huang et al. 2024 (arXiv:2403.07652).
    """

    coef: float = 1e-4
    name: ClassVar[str] = "entropy"

    def build(self, dim: int, num_experts: int) -> Entropy:
        return self

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        return mean_of_tokens(entropies(routing), routing)


@dataclass(frozen=True)
class Importance:
    """Squared coefficient of variation of the sum of gates of each expert.

    Source: Shazeer et al. 2017 (arXiv:1701.06538); population variance, (E - 1) / E of the sample variance.
    """

    coef: float = 0.1
    name: ClassVar[str] = "importance"

    def build(self, dim: int, num_experts: int) -> Importance:
        return self

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        sums_E = routing.gate_N.new_zeros(routing.num_experts).index_add(0, routing.exp_N, routing.gate_N)
        return squared_variation(sums_E, routing.open_E)


@dataclass(frozen=True)
class NoisyLoad:
    """Squared coefficient of variation of the expected load of each expert under noisy top-k: smooth in the logits.

    Reads the layer's `Noise` modifier; the selection is TopK. In evaluation nothing is noisy: counts are used, without
    a gradient. Source: Shazeer et al. 2017 (arXiv:1701.06538).
    """

    coef: float = 0.1
    name: ClassVar[str] = "noisy_load"

    def build(self, dim: int, num_experts: int) -> NoisyLoad:
        return self

    def __call__(self, routing: Routing, layer: Any) -> Tensor:
        noise = next((mod for mod in layer.router.mods if hasattr(mod, "noisy_TE")), None)
        if noise is None:
            raise ConfigError(
                "aux", got="NoisyLoad", expected="a Noise modifier beside it", hint="Add mods=(Noise(),) to the layer."
            )
        k = getattr(layer.router.select, "k", None)
        if k is None:
            got = type(layer.router.select).__name__
            raise ConfigError("select", got=got, expected="TopK, a fixed number of experts, for NoisyLoad")
        if not layer.training or noise.noisy_TE is None:
            return squared_variation(routing.count_E.float(), routing.open_E)
        chance_TE = chance_of_choice(noise.clean_TE, noise.noisy_TE, noise.std_TE, k)
        if routing.valid_T is not None:
            chance_TE = torch.where(routing.valid_T[:, None], chance_TE, 0.0)
        return squared_variation(chance_TE.sum(0), routing.open_E)


def chance_of_choice(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """The probability [T, E] that an expert is among the k best if its own noise alone is drawn again.

    Its rivals' bar is the k-th largest noisy logit of the others: the (k + 1)-th of all for an expert that is chosen,
    the k-th for one that is not.
    """
    num_experts = clean_TE.shape[-1]
    require_k(k, num_experts, name="k")
    if k == num_experts:
        return torch.ones_like(clean_TE)
    best = noisy_TE.topk(k + 1, dim=-1).values
    if_chosen, if_not = best[:, k : k + 1], best[:, k - 1 : k]
    bar = torch.where(noisy_TE > if_chosen, if_chosen, if_not)
    z = (clean_TE - bar) / std_TE.clamp(min=1e-6)
    return torch.special.ndtr(z)
