"""How local routing is in time, and what a cache of experts would make of it.

Tokens are rows of a mask [T, E] (which experts each uses), sequences one after the other: `lengths` [B] says how long
each is, None that there is one. Padding is left out before: see `used`. No window, chunk or cache crosses a sequence.
Where there is nothing to measure the result is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.routing import Routing, count_pairs

POLICIES = ("lru", "lfu", "belady")


class Used(NamedTuple):
    """Which experts the tokens of a batch use, without padding."""

    mask_TE: Tensor  # bool
    lengths: Tensor  # int64 [B]


def used(routing: Routing) -> Used:
    """Mask and lengths of the tokens that are not padding."""
    mask_TE, (num_sequences, length) = routing.mask_TE(), routing.shape
    if routing.valid_T is None:
        return Used(mask_TE, torch.full((num_sequences,), length, device=mask_TE.device))
    return Used(mask_TE[routing.valid_T], routing.valid_T.reshape(num_sequences, length).sum(1))


def _lengths(lengths: Any, num_tokens: int) -> Tensor:
    lengths = torch.tensor([num_tokens]) if lengths is None else torch.as_tensor(lengths)
    if int(lengths.sum()) != num_tokens:
        raise ShapeError("lengths", got=(int(lengths.sum()),), expected=(f"the sum {num_tokens}, one for each token",))
    return lengths


def window_histogram(mask_TE: Any, m: int, lengths: Any = None) -> Tensor:
    """How many windows of m consecutive tokens use an expert f times: int64 [E, m + 1], f from 0. O(T E).

    Sum histograms of batches or layers to measure them together.
    """
    mask_TE = torch.as_tensor(mask_TE)
    if m < 1:
        raise ConfigError("m", got=m, expected="1 token or more")
    if mask_TE.ndim != 2 or mask_TE.dtype != torch.bool:
        raise ShapeError("mask", got=tuple(mask_TE.shape), expected=("T", "E, bool"))
    num_tokens, num_experts = mask_TE.shape
    lengths = _lengths(lengths, num_tokens).to(mask_TE.device)
    if num_tokens < m:
        return torch.zeros(num_experts, m + 1, dtype=torch.int64, device=mask_TE.device)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths), device=mask_TE.device), lengths)
    whole = sequence_T[m - 1 :] == sequence_T[: num_tokens - m + 1]
    total_TE = torch.cat([mask_TE.new_zeros(1, num_experts, dtype=torch.int32), mask_TE.cumsum(0, dtype=torch.int32)])
    times_WE = (total_TE[m:] - total_TE[:-m])[whole]
    place = times_WE.long() + torch.arange(num_experts, device=mask_TE.device) * (m + 1)
    return count_pairs(place.flatten(), num_experts * (m + 1)).reshape(num_experts, m + 1)


class SegmentRouting(NamedTuple):
    """How well one decision for a whole window stands for decisions token by token."""

    srp: float  # F1 at the best threshold, 0 to 1
    alpha: int  # that threshold: uses in a window from which an expert is kept for all of it
    size_ratio: float  # activations a segment router would make over those there are


def segment_routing(histogram: Tensor) -> SegmentRouting:
    """The best segment router of windows counted by `window_histogram` [..., m + 1], one threshold for all."""
    h = histogram.reshape(-1, histogram.shape[-1]).sum(0).double()
    m = len(h) - 1
    if not h.sum():
        return SegmentRouting(math.nan, 0, math.nan)
    tail = [values.flip(0).cumsum(0).flip(0)[1:] for values in (h * torch.arange(m + 1, device=h.device), h)]
    caught, kept = tail[0], m * tail[1]
    activations = caught[0]  # a threshold of 1 misses nothing
    if not activations:
        return SegmentRouting(0.0, 0, 0.0)
    f1 = 2 * caught / (kept + activations)
    best = int(f1.argmax())
    return SegmentRouting(float(f1[best]), best + 1, float(kept[best] / activations))


def srp(mask_TE: Any, m: int, lengths: Any = None) -> SegmentRouting:
    """Segment routing best performance: the best F1 of a router that decides once for each window of m tokens.

    One threshold is chosen for all experts (averaging an F1 of each is another number); windows overlap, stride 1.
    Source: local routing consistency, Liang et al. 2025 (arXiv:2505.16056).
    """
    return segment_routing(window_histogram(mask_TE, m, lengths))


def token_sparsity(mask_TE: Any) -> float:
    """TLS, the mean share of experts a token does not use. Source: BlockFFN (arXiv:2507.08771)."""
    mask_TE = torch.as_tensor(mask_TE)
    return 1.0 - float(mask_TE.double().mean()) if mask_TE.numel() else math.nan


def chunk_union_sparsity(mask_TE: Any, m: int, lengths: Any = None) -> float:
    """CLS, the mean share of experts that no token of a window of m uses; over all windows.

    Source: BlockFFN (arXiv:2507.08771).
    """
    return union_sparsity(window_histogram(mask_TE, m, lengths))


def union_sparsity(histogram: Tensor) -> float:
    """`chunk_union_sparsity` of windows counted by `window_histogram`."""
    total = int(histogram.sum())
    return float(histogram[:, 0].sum() / total) if total else math.nan


def interleaved(masks: Sequence[Any]) -> Tensor:
    """Masks [T, E] of several layers as the one trace [T x layers, layers x E] that a cache shared by them sees.

    Multiply `lengths` by the number of layers.
    """
    stacked = torch.stack([torch.as_tensor(mask) for mask in masks], 1)  # [T, layers, E]
    num_tokens, num_layers, num_experts = stacked.shape
    trace = stacked.new_zeros(num_tokens, num_layers, num_layers, num_experts)
    layer = torch.arange(num_layers)
    trace[:, layer, layer] = stacked
    return trace.reshape(num_tokens * num_layers, num_layers * num_experts)


def hit_rate(index: Any, size: int, policy: str = "lru", *, lengths: Any = None) -> float:
    """Share of activations whose expert is in a cache of `size` experts, cold at the start of each sequence.

    index: experts of each token [T, K], -1 for none, or a bool mask [T, E]. A token loads what it misses; then
    residents it does not need leave. policy: "lru", the longest unused; "lfu", the least used so far; "belady", the
    one whose next use is farthest, which no policy beats and which knows the future. Ties: the longest unused.
    """
    if policy not in POLICIES:
        raise UnknownNameError("policy", policy, POLICIES)
    need_BLE = _needs(index, lengths)
    length = need_BLE.shape[1]
    if policy == "lru":
        return _simulate(need_BLE, size, lambda t: None)
    if policy == "lfu":
        so_far = need_BLE.cumsum(1, dtype=np.int32)
        return _simulate(need_BLE, size, lambda t: so_far[:, t])
    place = np.where(need_BLE, np.arange(length, dtype=np.int32)[:, None], np.int32(length))
    next_use = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]  # at or after t
    return _simulate(need_BLE, size, lambda t: -next_use[:, min(t + 1, length - 1)])


def sch(index: Any, size: int, m: int, *, lengths: Any = None) -> float:
    """Segment cache best hit rate: as `hit_rate`, where those with the fewest uses in the next m tokens leave.

    size: rho x K of the publication. It looks ahead, yet is not optimal: "belady" is at least as good.
    Source: local routing consistency, Liang et al. 2025 (arXiv:2505.16056).
    """
    if m < 1:
        raise ConfigError("m", got=m, expected="1 token or more")
    need_BLE = _needs(index, lengths)
    so_far = need_BLE.cumsum(1, dtype=np.int32)
    last = need_BLE.shape[1] - 1
    return _simulate(need_BLE, size, lambda t: so_far[:, min(t + m, last)] - so_far[:, t])


def _needs(index: Any, lengths: Any) -> np.ndarray:
    """bool [B, L, E]: what each step of each sequence needs; nothing after its end."""
    index = torch.as_tensor(index).cpu()
    if index.ndim != 2:
        raise ShapeError("index", got=tuple(index.shape), expected=("T", "K or E"))
    lengths = _lengths(lengths, len(index)).cpu()
    if index.dtype != torch.bool:
        num_experts = int(index.max()) + 1 if index.numel() else 0
        mask = torch.zeros(len(index), num_experts + 1, dtype=torch.bool)
        index = mask.scatter_(1, torch.where(index < 0, num_experts, index).long(), True)[:, :num_experts]
    need = np.zeros((len(lengths), int(lengths.max()) if len(lengths) else 0, index.shape[1]), dtype=bool)
    inside = np.arange(need.shape[1]) < lengths.numpy()[:, None]
    need[inside] = index.numpy()
    return need


def _simulate(need_BLE: np.ndarray, size: int, worth: Callable[[int], np.ndarray | None]) -> float:
    """Hit rate where the residents of least worth(t) [B, E] leave; all sequences at a time, step by step."""
    num_sequences, length, num_experts = need_BLE.shape
    most = int(need_BLE.sum(-1).max(initial=0))
    if size < max(most, 1):
        raise ConfigError("size", got=size, expected=f"at least {max(most, 1)}, the experts of one token")
    cached = np.zeros((num_sequences, num_experts), dtype=bool)
    last_use = np.zeros((num_sequences, num_experts), dtype=np.int64)
    hits = 0
    for t in range(length):
        need = need_BLE[:, t]
        hits += int((need & cached).sum())
        cached |= need
        last_use[need] = t
        over = cached.sum(1) - size
        rows = np.flatnonzero(over > 0)
        if not len(rows):
            continue
        value = worth(t)
        order = last_use[rows] if value is None else value[rows].astype(np.int64) * length + last_use[rows]
        order = order * num_experts + np.arange(num_experts)  # no two are equal
        order[~cached[rows] | need[rows]] = np.iinfo(np.int64).max
        bar = np.sort(order, axis=1)[np.arange(len(rows)), over[rows] - 1]
        cached[rows] &= order > bar[:, None]
    total = int(need_BLE.sum())
    return hits / total if total else math.nan
