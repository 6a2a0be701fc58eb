"""Place a batch of requests on instances, each placement seen by the next: fused choice of model and replica.

Letters: n requests, m instances (a model's replica each).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.types import Array, Estimates, Objective, Rng, Selection

RELAXED = ("first_token_s", "latency_s", "cost", "quality")  # given up in this order, a tenth at a time
ROUNDS = 3


@dataclass(slots=True)
class InstanceState:
    """What a scheduler knows of one instance. Tokens are expected ones."""

    running: int = 0  # requests in a slot
    waiting: int = 0
    slots: int = 1
    pending_prefill: float = 0.0  # prompt tokens not yet read
    pending_decode: float = 0.0  # tokens still to be written, running and waiting
    prefill_tokens_per_s: float = math.inf
    seconds_per_token: float = 0.0

    def add(self, prompt: float, output: float) -> None:
        """Count a request that was just placed here, before the instance reports it: dead reckoning."""
        self.waiting += 1
        self.pending_prefill += prompt
        self.pending_decode += output

    def delays(self, prompt: float, output: float) -> tuple[float, float]:
        """Expected seconds until the first and until the last token of a request placed here now."""
        full = self.running + self.waiting >= self.slots
        queue = self.pending_decode / self.slots * self.seconds_per_token if full else 0.0
        first = queue + (self.pending_prefill + prompt) / self.prefill_tokens_per_s
        return first, first + output * self.seconds_per_token


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig:
    """How a batch is placed. None: no such limit."""

    quality: float = 1 / 3  # weights of the score
    cost: float = 1 / 3
    latency: float = 1 / 3
    balance: float = 0.0
    latency_s: float | None = None  # hard limits, relaxed by a tenth where nobody keeps them
    first_token_s: float | None = None
    max_cost: float | None = None  # USD a request
    min_quality: float | None = None
    certainty: float = 0.7  # a latency limit must be kept with this probability
    spread_quality: bool = False  # stretch each request's qualities to 0..1 before weighing
    reckon: bool = True  # count placements of this batch before the instances report them

    def __post_init__(self) -> None:
        for name in ("quality", "cost", "latency", "balance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(name, got=getattr(self, name), expected="a weight of 0 or more")
        if not 0 < self.certainty < 1:
            raise ConfigError("certainty", got=self.certainty, expected="a probability between 0 and 1")


class Batch(NamedTuple):
    """What is expected of each request on each instance."""

    quality: Array  # [n, m] 0..1
    cost: Array  # [n, m] USD
    output: Array  # [n, m] tokens
    prompt: Array  # [n] tokens


class Placement(NamedTuple):
    """Where one request goes. relaxed: how many times a limit was relaxed by a tenth; -1: no limit could be kept."""

    row: int
    column: int
    latency_s: float
    relaxed: int


class Lateness:
    """How late answers came over what was expected: the factor that `certainty` of the last `memory` stayed within."""

    def __init__(self, memory: int = 500):
        self._ratios: deque[float] = deque([1.0], maxlen=memory)

    def saw(self, expected_s: float, took_s: float) -> None:
        """Take in one answer."""
        if expected_s > 0 and took_s >= 0:
            self._ratios.append(took_s / expected_s)

    def factor(self, certainty: float) -> float:
        return float(np.quantile(np.array(self._ratios), certainty))


def assign(
    batch: Batch,
    states: Sequence[InstanceState],
    config: AssignConfig = AssignConfig(),
    *,
    allowed: Array | None = None,
    lateness: Lateness | None = None,
) -> list[Placement]:
    """Place every request of a batch, longest expected answer first, in the order given.

    states: [m], read once; placements are counted on a copy. allowed: [n, m] bool. lateness: scales expected latencies
    before a limit is checked; None: they are taken as they are. Where nobody keeps the limits, one after the other is
    relaxed by a tenth, in the order of `RELAXED`, for three rounds; after that the request is placed without.
    Raises: NoCandidateError where a row allows nobody; ShapeError where arrays do not fit.
    Source: RouteBalance (github.com/AKafakA/route-balance): batch, dead reckoning, limits by residual quantiles; its
    learned regressor of the time per token is not part of this.
    """
    n, m = batch.quality.shape
    for name, array, shape in (
        ("cost", batch.cost, (n, m)),
        ("output", batch.output, (n, m)),
        ("prompt", batch.prompt, (n,)),
    ):
        if np.shape(array) != shape:
            raise ShapeError(name, got=np.shape(array), expected=shape)
    if len(states) != m:
        raise ShapeError("states", got=(len(states),), expected=(m,))
    allowed = np.ones((n, m), dtype=bool) if allowed is None else allowed
    local = [replace(state) for state in states]
    factor = 1.0 if lateness is None else lateness.factor(config.certainty)
    placed: list[Placement | None] = [None] * n
    for i in np.argsort(-batch.output.max(axis=1, initial=0.0), kind="stable"):
        if not allowed[i].any():
            raise NoCandidateError(f"row {i}", {f"column {j}": "`allowed`" for j in range(m)})
        prompt = float(batch.prompt[i])
        first, last = np.array(
            [s.delays(prompt, out) for s, out in zip(local, batch.output[i].tolist(), strict=True)]
        ).T
        metrics = {
            "first_token_s": factor * first,
            "latency_s": factor * last,
            "cost": batch.cost[i],
            "quality": batch.quality[i],
        }
        keeps, relaxed = within(metrics, allowed[i], config)
        column = best(keeps, metrics | {"latency_s": last}, local, config)
        if config.reckon:
            local[column].add(prompt, float(batch.output[i, column]))
        placed[i] = Placement(int(i), column, float(last[column]), relaxed)
    return [place for place in placed if place is not None]


def within(metrics: dict[str, Array], allowed: Array, config: AssignConfig) -> tuple[Array, int]:
    """Who keeps every limit, [m] bool, and how often a limit had to be relaxed for that; -1: everyone, after all."""
    limits = {"first_token_s": config.first_token_s, "latency_s": config.latency_s, "cost": config.max_cost,
              "quality": config.min_quality}  # fmt: skip
    active = {name: limit for name, limit in limits.items() if limit is not None}
    if not active:
        return allowed, 0
    for relaxed in range(ROUNDS * len(active) + 1):
        if relaxed:
            name = [name for name in RELAXED if name in active][(relaxed - 1) % len(active)]
            active[name] *= 0.9 if name == "quality" else 1.1
        keeps = allowed.copy()
        for name, limit in active.items():
            keeps &= metrics[name] >= limit if name == "quality" else metrics[name] <= limit
        if keeps.any():
            return keeps, relaxed
    return allowed, -1


def best(among: Array, metrics: dict[str, Array], states: Sequence[InstanceState], config: AssignConfig) -> int:
    """The column of highest score among those that keep the limits; ties go to the shorter queue, then the first."""
    at: list[int] = np.flatnonzero(among).tolist()
    quality, cost, latency = (metrics[name][at] for name in ("quality", "cost", "latency_s"))
    load = np.array([(states[j].running + states[j].waiting) / states[j].slots for j in at])
    if config.spread_quality:
        quality = (quality - quality.min()) / max(float(np.ptp(quality)), 1e-12)
    score = config.quality * quality
    for weight, value in ((config.cost, cost), (config.latency, latency), (config.balance, load)):
        score = score + weight * (1.0 - value / max(float(value.max()), 1e-12))
    return at[int(np.lexsort((load, -score.round(12)))[0])]


class Assign:
    """`assign` as a policy: the instances' states are asked for once a batch. Needs quality, cost and output_tokens.

    The objective is not weighed: limits and weights are those of the config, as this score is relative to the batch.
    """

    def __init__(
        self,
        states: Callable[[], Sequence[InstanceState]],
        config: AssignConfig = AssignConfig(),
        lateness: Lateness | None = None,
        prompt_tokens: float = 0.0,
    ):
        self.states, self.config, self.lateness, self.prompt_tokens = states, config, lateness, prompt_tokens

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] without propensity; weights are expected qualities."""
        quality = estimates["quality"].mean
        prompt = np.full(len(quality), self.prompt_tokens)
        batch = Batch(quality, estimates["cost"].mean, estimates["output_tokens"].mean, prompt)
        placed = assign(batch, self.states(), self.config, allowed=allowed, lateness=self.lateness)
        index = np.array([place.column for place in placed], dtype=int)[:, None]
        return Selection(index, np.take_along_axis(quality, index, axis=1))


def gathering(busy: float) -> tuple[int, float]:
    """How long to gather a batch: (requests, seconds), whichever comes first. busy: share of instances at work."""
    if busy < 0.3:
        return 4, 0.050
    return (16, 0.100) if busy < 0.7 else (32, 0.200)


def output_limit(budget_usd: float, prompt_tokens: float, price_in: float, price_out: float) -> int:
    """Completion tokens that a request's budget still pays for; 0 if the prompt alone costs more.

    price_in, price_out: USD per 1e6 tokens.
    """
    left = budget_usd - prompt_tokens * price_in / 1e6
    if left <= 0:
        return 0
    return int(min(left / price_out * 1e6, 2**31)) if price_out > 0 else 2**31
