"""Rewards that routing language models are trained on: form first, then the outcome, then its cost."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.flows.traces import fault_of, parse_trace
from polyroute.types import Array

ARTICLES = re.compile(r"\b(a|an|the)\b")
NEITHER = 0.5  # what a cost is worth while there is nothing to compare it with


def plain_answer(text: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, single spaces."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 where both are the same once made plain, else 0.0."""
    return float(plain_answer(answer) == plain_answer(gold))


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words of both, 0..1."""
    said, right = plain_answer(answer).split(), plain_answer(gold).split()
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else float(not said and not right)


class PercentileCost:
    """Turns costs into 0 (dear) to 1 (cheap) between two percentiles of the costs seen lately.

    The square root of a cost is placed between the `low`-th and the `high`-th percentile of the last `window` costs,
    cut to 0..1 and turned round. So the unit of money cancels, and a few huge bills do not flatten the rest. A batch
    is scored against what was seen before it, then joins the window. 0.5 while the window has no two different costs.
    Source: Router-R1 (arXiv:2506.09033); scoring before joining is a choice made here.
    """

    def __init__(self, window: int = 1000, low: float = 5.0, high: float = 95.0):
        if window < 2:
            raise ConfigError("window", got=window, expected="2 costs or more")
        if not 0 <= low < high <= 100:
            raise ConfigError("low, high", got=(low, high), expected="percentiles, 0 <= low < high <= 100")
        self.low, self.high = low, high
        self.seen_: deque[float] = deque(maxlen=window)

    def __call__(self, costs: Array) -> Array:
        """Score of each cost, same shape. costs: any unit, 0 or more. Raises: ConfigError for a cost that is none."""
        costs = np.asarray(costs, dtype=float)
        if not (costs >= 0).all() or not np.isfinite(costs).all():
            raise ConfigError("costs", got=float(costs.min(initial=np.nan)), expected="finite numbers, 0 or more")
        root = np.sqrt(costs)
        low, high = np.percentile(self.seen_, [self.low, self.high]) if self.seen_ else (0.0, 0.0)
        flat = high - low <= 1e-12 * max(abs(high), 1e-300)
        score = np.full(costs.shape, NEITHER) if flat else 1 - np.clip((root - low) / (high - low), 0.0, 1.0)
        self.seen_.extend(root.ravel().tolist())
        return score


@dataclass(frozen=True, slots=True)
class RouteReward:
    """Reward of a whole trace: -1 for a broken form, 0 for a wrong answer, else outcome and cheapness mixed.

    Called with (text, cost, gold). names: ids that may be asked. alpha: the share of cheapness, 0: cost is ignored.
    Cheapness is paid for right answers only, or a policy learns to fail cheaply. The cost to give is that of every
    call with prompt and completion; the paper bills completion tokens of the asked models alone.
    Source: Router-R1 (arXiv:2506.09033).
    """

    names: Sequence[str]
    alpha: float = 0.0
    cheapness: Callable[[Array], Array] | None = None  # None: a PercentileCost of its own
    match: Callable[[str, str], float] = exact_match
    max_searches: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError("alpha", got=self.alpha, expected="a share, 0 to 1")
        if self.cheapness is None:
            object.__setattr__(self, "cheapness", PercentileCost())

    def __call__(self, text: str, cost: float, gold: str) -> float:
        if fault_of(text, self.names, max_searches=self.max_searches) is not None:
            return -1.0
        assert self.cheapness is not None
        outcome = self.match(parse_trace(text)[-1].text, gold)
        return float(mixed(np.array([outcome]), self.cheapness(np.array([cost])), self.alpha)[0])


def mixed(outcome: Array, cheapness: Array, alpha: float) -> Array:
    """(1 - alpha) outcome + alpha cheapness where the outcome is above 0, and 0 elsewhere. Same shapes, 0..1."""
    return np.where(outcome > 0, (1 - alpha) * outcome + alpha * cheapness, 0.0)


def adaptive_reward(
    right: Array, well_formed: Array, instant: Array, easy_share: Array, *, threshold: float = 0.5, alpha: float = 2.0
) -> Array:
    """Reward of a rollout that chose a mode: right x well formed x what choosing more than was needed leaves.

    right, well_formed: 0..1. instant: bool, the quick mode was chosen. easy_share: share p of the instant rollouts of
    the same query that were right. Where p is above `threshold` another mode earns 1 - p^alpha, else nothing is
    taken off. It multiplies, so a wrong quick answer is never preferred. All broadcast to one shape.
    p from few rollouts is coarse (0, 1/3, 2/3, 1 from three): keep `threshold` between. Its published value is not
    known (inferred). Source: A2FM (arXiv:2510.12838), Adaptive Policy Optimisation.
    """
    if not (0 <= threshold <= 1 and alpha > 0):
        raise ConfigError("threshold, alpha", got=(threshold, alpha), expected="a share, and a power above 0")
    share = np.asarray(easy_share, dtype=float)
    adaptive = np.where((share > threshold) & ~np.asarray(instant, dtype=bool), 1 - share**alpha, 1.0)
    return np.asarray(right, dtype=float) * np.asarray(well_formed, dtype=float) * adaptive


def set_reward(chosen: Array, right: Array, *, extra: float = 0.1) -> Array:
    """F1 of each chosen set less `extra` for each wrong member, [n]. chosen, right: [n, m] bool.

    Two empty sets earn 1: out of scope was said rightly. The form is inferred; see TCAndon-Router.
    """
    chosen, right = np.asarray(chosen, dtype=bool), np.asarray(right, dtype=bool)
    if chosen.shape != right.shape:
        raise ShapeError("right", got=right.shape, expected=chosen.shape)
    hit, size = (chosen & right).sum(axis=1), chosen.sum(axis=1) + right.sum(axis=1)
    f1 = np.where(size > 0, 2 * hit / np.maximum(size, 1), 1.0)
    return f1 - extra * (chosen & ~right).sum(axis=1)


def cost_of_pass(cost: Array, success: Array) -> float:
    """Money spent for each right answer: mean cost over mean success; infinite where nothing was right."""
    rate = float(np.mean(success))
    return float(np.mean(cost)) / rate if rate > 0 else float("inf")
