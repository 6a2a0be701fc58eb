"""Part 9, what a router does, in numbers: load, doubt, change, information. Functions; taps are at the end.

Integer sequences may be tensors, arrays or lists; results are Python floats unless a shape is given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from polyroute.errors import ShapeError
from polyroute.nn.losses import entropies, mean_of_tokens
from polyroute.nn.routing import Routing


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
    return max(_bits(joint.sum(1)) + _bits(joint.sum(0)) - _bits(joint.flatten()), 0.0)


def nmi(a: Any, b: Any) -> float:
    """Mutual information over the mean of both entropies, 0 to 1; 0 where both sequences are constant."""
    joint = _joint(a, b)
    mean = 0.5 * (_bits(joint.sum(1)) + _bits(joint.sum(0)))
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


def _bits(p: Tensor) -> float:
    """Entropy of a distribution, nats."""
    return float(torch.special.entr(p).sum()) if p.numel() else math.nan
