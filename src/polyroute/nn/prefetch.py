"""What fetching experts while attention runs saves: a simulator of one fast cache and one slow store.

A token passes the layers one after the other; each needs some experts, those not in the cache are read from the store,
one after the other. When the router reads the stream before attention, reading starts with attention, else after it.
Source: SmallThinker (arXiv:2507.20984).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.locality import _lengths


class Stalls(NamedTuple):
    """Seconds (or whatever unit t_io has) that a token waits for experts, and what was read; means over tokens."""

    stall: float
    reads: float
    misses: float  # experts a token needs that are not in the cache when attention begins

    def saved(self, other: Stalls) -> float:
        """Share of the other's stall that is gone; 0 where it has none."""
        return 1.0 - self.stall / other.stall if other.stall > 0 else 0.0


def simulate(
    masks: Sequence[Any], size: int, *, t_io: float, t_attention: float = 0.0, early: Sequence[Any] | None = None,
    lengths: Any = None,
) -> Stalls:  # fmt: skip
    """Run the tokens' needs through one LRU cache of `size` experts, shared by all layers, cold at each sequence.

    masks: of each layer, bool [T, E], the experts each token needs. early: those that are fetched from when attention
    begins; None: nothing is known then. t_io: to read one expert. t_attention: attention of one token in one layer.
    What was fetched early and is needed after all costs max(0, reads x t_io - t_attention); what is missed costs t_io
    each on top. Raises: ConfigError when a token's experts do not fit.
    """
    need = _stacked("masks", masks)
    ahead = torch.zeros_like(need) if early is None else _stacked("early", early)
    if ahead.shape != need.shape:
        raise ShapeError("early", got=tuple(ahead.shape), expected=tuple(need.shape))
    num_tokens, num_layers, _ = need.shape
    most = int((need | ahead).sum(-1).max()) if num_tokens else 0
    if size < max(most, 1):
        raise ConfigError("size", got=size, expected=f"at least {max(most, 1)}, the experts of one token and layer")
    needed, guessed = (_ids(mask) for mask in (need, ahead))
    stall, reads, misses, t = 0.0, 0, 0, 0
    for length in _lengths(lengths, num_tokens).tolist():
        cache: dict[int, None] = {}  # longest unused first
        for _ in range(length):
            for layer in range(num_layers):
                step = t * num_layers + layer
                misses += sum(e not in cache for e in needed[step])
                fetched = _touch(cache, guessed[step], size)
                late = _touch(cache, needed[step], size)
                reads += fetched + late
                stall += max(0.0, fetched * t_io - t_attention) + late * t_io
            t += 1
    return Stalls(*(value / max(num_tokens, 1) for value in (stall, reads, misses)))


def last_token(masks: Sequence[Any]) -> list[Tensor]:
    """The needs of the token before, in each layer: the guess of whoever has no early router."""
    return [torch.cat([torch.zeros_like(m[:1]), m[:-1]]) for m in map(torch.as_tensor, masks)]


def _stacked(name: str, masks: Sequence[Any]) -> Tensor:
    tensors = [torch.as_tensor(mask) for mask in masks]
    if not tensors or any(m.ndim != 2 or m.dtype != torch.bool or m.shape != tensors[0].shape for m in tensors):
        raise ShapeError(name, got=tuple(tuple(m.shape) for m in tensors), expected=("layers of [T, E], bool",))
    return torch.stack(tensors, 1)


def _ids(mask: Tensor) -> list[list[int]]:
    """Experts of each (token, layer), numbered through all layers."""
    num_tokens, num_layers, num_experts = mask.shape
    found: list[list[int]] = [[] for _ in range(num_tokens * num_layers)]
    for t, layer, e in mask.nonzero().tolist():
        found[t * num_layers + layer].append(layer * num_experts + e)
    return found


def _touch(cache: dict[int, None], wanted: list[int], size: int) -> int:
    """Bring the wanted experts in as the last used, and drop the longest unused. Returns how many were read."""
    read = 0
    for e in wanted:
        read += e not in cache
        cache.pop(e, None)
        cache[e] = None
    while len(cache) > size:
        del cache[next(iter(cache))]
    return read
