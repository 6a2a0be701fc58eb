"""Part 9, what a router does, in numbers: load, doubt, change, information; and the taps that gather them.

Integer sequences may be tensors, arrays or lists; results are Python floats unless a shape is given. Locality in time
and caches: nn/locality.py. A tap is described by a frozen dataclass; built, it has `observe(routing, ctx)`, called
after every forward pass of its layer, training or not, `result() -> dict` and `reset()`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.locality import segment_routing, union_sparsity, used, window_histogram
from polyroute.nn.losses import entropies, mean_of_tokens, mean_shares, sequence_counts
from polyroute.nn.routing import Routing, TokenContext


def max_vio(count_E: Any) -> float:
    """Load of the busiest expert over the mean load, minus 1: 0 is balance. Measure it on thousands of tokens."""
    count = torch.as_tensor(count_E).double()
    total = count.sum()
    return float(count.max() / (total / len(count)) - 1.0) if len(count) and total > 0 else 0.0


def route_entropy(routing: Routing) -> float:
    """Mean entropy of the scores over tokens, nats."""
    return float(mean_of_tokens(entropies(routing).detach(), routing))


def fluctuation(before: Any, after: Any) -> float:
    """Share of places whose choice differs between two checkpoints on the same text. before, after: top-1 ids."""
    before, after = torch.as_tensor(before), torch.as_tensor(after)
    if before.shape != after.shape:
        raise ShapeError("after", got=tuple(after.shape), expected=tuple(before.shape))
    return float((before != after).double().mean()) if before.numel() else 0.0


def mutual_information(a: Any, b: Any) -> float:
    """Information between two sequences of integers, nats: domain and expert, or experts of two layers.

    From observed frequencies, so a few tokens overstate it by about (num_a - 1)(num_b - 1) / (2 n).
    """
    joint = _joint(a, b)
    return max(_nats(joint.sum(1)) + _nats(joint.sum(0)) - _nats(joint.flatten()), 0.0)


def nmi(a: Any, b: Any) -> float:
    """Mutual information over the mean of both entropies, 0 to 1; 0 where both sequences are constant."""
    joint = _joint(a, b)
    mean = 0.5 * (_nats(joint.sum(1)) + _nats(joint.sum(0)))
    information = mutual_information(a, b)
    return min(information / mean, 1.0) if mean > 0 else 0.0


def _joint(a: Any, b: Any) -> Tensor:
    """Frequencies [values of a, values of b]."""
    a, b = torch.as_tensor(a).flatten(), torch.as_tensor(b).flatten()
    if a.shape != b.shape:
        raise ShapeError("b", got=tuple(b.shape), expected=tuple(a.shape))
    if not len(a):
        return torch.ones(1, 1, dtype=torch.float64)
    values_a, a = a.unique(return_inverse=True)
    values_b, b = b.to(a.device).unique(return_inverse=True)
    counts = torch.bincount(a * len(values_b) + b, minlength=len(values_a) * len(values_b))
    return counts.reshape(len(values_a), len(values_b)).double() / len(a)


def _nats(p: Tensor) -> float:
    """Entropy of a distribution, nats."""
    return float(torch.special.entr(p).sum()) if p.numel() else math.nan


def domain_information(routing: Routing, domain_T: Any) -> float:
    """Information between each token's domain and its experts, over all pairs, nats."""
    return mutual_information(torch.as_tensor(domain_T, device=routing.tok_N.device)[routing.tok_N], routing.exp_N)


def depth_information(routings: Mapping[str, Routing] | Sequence[Routing]) -> list[float]:
    """Information between the top experts of each two adjacent layers for the same tokens, nats; padding left out."""
    found = list(routings.values()) if isinstance(routings, Mapping) else list(routings)
    tops = [r.top1_T() if r.valid_T is None else r.top1_T()[r.valid_T] for r in found]
    return [mutual_information(a, b) for a, b in pairwise(tops)]


def divergence(p: Any, q: Any, *, normalised: bool = True) -> Tensor:
    """Jensen-Shannon divergence of distributions [..., E] over the mean of their entropies: [...], 0 where equal.

    normalised: False gives nats. The normaliser makes layers comparable (inferred: the publication does not state
    it); it is infinite where both are certain and differ. Rows need not sum to 1.
    Source: Multilingual routing in mixture-of-experts (arXiv:2510.04694).
    """
    p, q = (torch.as_tensor(x, dtype=torch.float64) for x in (p, q))
    p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
    own = 0.5 * (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1))
    shannon = (torch.special.entr(0.5 * (p + q)).sum(-1) - own).clamp(min=0)
    shannon = torch.where((p == q).all(-1), 0.0, shannon)
    return torch.where(shannon > 0, shannon / own, 0.0) if normalised else shannon


def jaccard(a: Routing | Tensor, b: Routing | Tensor) -> float:
    """Mean over tokens of shared experts / experts of either, of two routings or bool masks of the same tokens."""
    a, b = (x.mask_TE() if isinstance(x, Routing) else torch.as_tensor(x) for x in (a, b))
    if a.shape != b.shape:
        raise ShapeError("b", got=tuple(b.shape), expected=tuple(a.shape))
    either_T = (a | b).sum(-1)
    some = either_T > 0
    return float(((a & b).sum(-1)[some].double() / either_T[some]).mean()) if some.any() else math.nan


class Profile(NamedTuple):
    """How a layer routes a text on the whole."""

    probs_E: Tensor  # mean share of each expert, sums to 1
    frequency_E: Tensor  # share of the tokens that use each expert, sums to the mean number of experts


def profile(routing: Routing, per: str = "token") -> Profile:
    """Mean shares and activation frequencies. per: "token", or "sequence", where each sequence weighs the same."""
    gathered = _RouteProfile(routing.num_experts, per)
    gathered.observe(routing, None)
    return Profile(gathered.result()["probs_E"], gathered.result()["frequency_E"])


@dataclass(frozen=True)
class Load:
    """Tap: pairs of each expert. result: count_E [E], max_vio."""

    def build(self, dim: int, num_experts: int) -> _Load:
        return _Load(num_experts)


class _Load:
    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.reset()

    def reset(self) -> None:
        self.count_E = torch.zeros(self.num_experts, dtype=torch.int64)

    def observe(self, routing: Routing, ctx: TokenContext | None) -> None:
        self.count_E = self.count_E.to(routing.count_E.device) + routing.count_E

    def result(self) -> dict[str, Any]:
        return {"count_E": self.count_E.cpu(), "max_vio": max_vio(self.count_E)}


@dataclass(frozen=True)
class MeanK:
    """Tap: experts a token. result: mean_k, its standard deviation over tokens std_k, the share of tokens with none."""

    def build(self, dim: int, num_experts: int) -> _MeanK:
        return _MeanK(num_experts)


class _MeanK:
    def __init__(self, num_experts: int):
        self.num_experts = num_experts
        self.reset()

    def reset(self) -> None:
        self.tokens_K = torch.zeros(self.num_experts + 1, dtype=torch.int64)  # tokens with so many experts

    def observe(self, routing: Routing, ctx: TokenContext | None) -> None:
        each_T = torch.bincount(routing.tok_N, minlength=routing.num_tokens)
        each_T = each_T if routing.valid_T is None else each_T[routing.valid_T]
        self.tokens_K = self.tokens_K.to(each_T.device) + torch.bincount(each_T, minlength=self.num_experts + 1)

    def result(self) -> dict[str, Any]:
        tokens_K = self.tokens_K.double().cpu()
        total, k = tokens_K.sum(), torch.arange(self.num_experts + 1)
        if not total:
            return {"mean_k": math.nan, "std_k": math.nan, "none": math.nan}
        mean = (tokens_K * k).sum() / total
        variance = (tokens_K * (k - mean).square()).sum() / total
        return {"mean_k": float(mean), "std_k": float(variance.sqrt()), "none": float(tokens_K[0] / total)}


@dataclass(frozen=True)
class RouteProfile:
    """Tap: mean share probs_E and activation frequency frequency_E of each expert; see `profile`."""

    per: str = "token"

    def build(self, dim: int, num_experts: int) -> _RouteProfile:
        return _RouteProfile(num_experts, self.per)


class _RouteProfile:
    def __init__(self, num_experts: int, per: str):
        if per not in ("token", "sequence"):
            raise ConfigError("per", got=per, expected='"token" or "sequence"')
        self.num_experts, self.per = num_experts, per
        self.reset()

    def reset(self) -> None:
        self.probs_E = torch.zeros(self.num_experts, dtype=torch.float64)
        self.frequency_E = torch.zeros(self.num_experts, dtype=torch.float64)
        self.weight = 0.0

    @torch.no_grad()
    def observe(self, routing: Routing, ctx: TokenContext | None) -> None:
        num_sequences, length = routing.shape
        probs_BE, count_BE = mean_shares(routing, num_sequences), sequence_counts(routing)
        real_B = torch.full((num_sequences,), length, device=count_BE.device)
        if routing.valid_T is not None:
            real_B = routing.valid_T.reshape(num_sequences, length).sum(1)
        weight_B1 = (real_B if self.per == "token" else (real_B > 0).to(real_B.dtype)).double()[:, None]
        self.probs_E = self.probs_E + (probs_BE * weight_B1).sum(0).cpu()
        self.frequency_E = self.frequency_E + (count_BE / real_B.clamp(min=1)[:, None] * weight_B1).sum(0).cpu()
        self.weight += float(weight_B1.sum())

    def result(self) -> dict[str, Any]:
        weight = max(self.weight, 1e-12)
        return {"probs_E": self.probs_E / weight, "frequency_E": self.frequency_E / weight}


@dataclass(frozen=True)
class LocalRouting:
    """Tap: how local routing is. result: tls, and for each m srp_m, size_ratio_m, cls_m; histograms are summed."""

    m: tuple[int, ...] = (4, 16, 64)

    def build(self, dim: int, num_experts: int) -> _LocalRouting:
        if not self.m or min(self.m) < 1:
            raise ConfigError("local_routing.m", got=self.m, expected="window lengths of 1 token or more")
        return _LocalRouting(num_experts, self.m)


class _LocalRouting:
    def __init__(self, num_experts: int, m: tuple[int, ...]):
        self.num_experts, self.m = num_experts, m
        self.reset()

    def reset(self) -> None:
        self.histograms = {m: torch.zeros(self.num_experts, m + 1, dtype=torch.int64) for m in {1, *self.m}}

    def observe(self, routing: Routing, ctx: TokenContext | None) -> None:
        mask_TE, lengths = used(routing)
        for m in self.histograms:
            self.histograms[m] += window_histogram(mask_TE, m, lengths).cpu()

    def result(self) -> dict[str, Any]:
        found = {"tls": union_sparsity(self.histograms[1])}
        for m in self.m:
            best = segment_routing(self.histograms[m])
            found[f"srp_{m}"], found[f"size_ratio_{m}"] = best.srp, best.size_ratio
            found[f"cls_{m}"] = union_sparsity(self.histograms[m])
        return found
