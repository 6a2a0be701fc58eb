"""A fleet of instances simulated event by event: slots, queues, prompt caches. Nothing sleeps."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.policies.assign import InstanceState
from polyroute.types import Array

Prefix: TypeAlias = tuple[int, ...]  # ids of a prompt's leading blocks, each standing for everything up to it


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One replica of a model."""

    id: str
    model: int = 0  # column of the arrivals' tokens
    slots: int = 1  # requests served at once
    prefill_tokens_per_s: float = float("inf")
    seconds_per_token: float = 0.0
    cache_blocks: int = 0  # prompt blocks kept, least recently used go first
    block_tokens: int = 512

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError("slots", got=self.slots, expected="1 or more")
        if not self.prefill_tokens_per_s > 0:
            raise ConfigError("prefill_tokens_per_s", got=self.prefill_tokens_per_s, expected="a speed above 0")
        if not 0 <= self.seconds_per_token < float("inf"):
            raise ConfigError("seconds_per_token", got=self.seconds_per_token, expected="seconds, 0 or more")


class Arrivals(NamedTuple):
    """Requests in order of time. t models."""

    time_s: Array  # [n] rising
    prompt: Array  # [n] tokens
    output: Array  # [n, t] tokens a model will write
    expected: Array | None = None  # [n, t] tokens a scheduler expects; None: it knows
    prefix: Sequence[Prefix] | None = None  # [n]


class Served(NamedTuple):
    """What became of each request."""

    instance: Array  # [n] int
    start_s: Array  # [n] a slot was free
    first_s: Array  # [n] the prompt was read
    finish_s: Array  # [n]
    cached: Array  # [n] prompt tokens found in the cache
    moves: int  # requests moved from one queue to another


@dataclass(slots=True)
class Live:
    """An instance at work. Its queue holds requests that have no slot yet."""

    spec: Instance
    running: dict[int, tuple[float, float]] = field(default_factory=dict)  # request -> (first token at, finish at)
    queue: deque[int] = field(default_factory=deque)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    reading: dict[int, float] = field(default_factory=dict)  # waiting request -> prompt tokens to be read, as expected
    coming: Counter[int] = field(default_factory=Counter)  # blocks of waiting requests: cached by the time they are due
    waiting_tokens: float = 0.0  # sum of `reading`

    def found(self, prefix: Prefix, *, soon: bool = False) -> int:
        """Leading blocks of a prompt that lie in the cache. soon: or will, once those that wait have been read."""
        count = 0
        for block in prefix:
            if block not in self.cache and not (soon and self.coming[block] > 0):
                break
            count += 1
        return count

    def join(self, request: int, tokens: float, prefix: Prefix) -> None:
        self.queue.append(request)
        self.reading[request], self.waiting_tokens = tokens, self.waiting_tokens + tokens
        self.coming.update(prefix)

    def leave(self, request: int, prefix: Prefix) -> None:
        self.queue.remove(request)
        self.waiting_tokens -= self.reading.pop(request)
        self.coming.subtract(prefix)

    def remember(self, prefix: Prefix) -> None:
        for block in reversed(prefix):  # the last blocks of a prompt are the first to go
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.spec.cache_blocks:
            self.cache.popitem(last=False)


class Fleet:
    """What a placement sees: the instances, live or as they were some time ago, and the requests."""

    def __init__(self, specs: Sequence[Instance], arrivals: Arrivals):
        if not specs:
            raise ConfigError("specs", got=specs, expected="at least one instance")
        self.live, self.arrivals, self.now = [Live(spec) for spec in specs], arrivals, 0.0
        self.expected = arrivals.output if arrivals.expected is None else arrivals.expected

    def state(self, j: int) -> InstanceState:
        """Instance j as a scheduler may know it now."""
        live, spec = self.live[j], self.live[j].spec
        tokens = self.expected[:, spec.model]
        decode = sum(float(tokens[r]) for r in live.queue)
        for r, (first, _) in live.running.items():
            done = max(0.0, self.now - first) / spec.seconds_per_token if spec.seconds_per_token else 0.0
            decode += max(0.0, float(tokens[r]) - done)
        prefill = live.waiting_tokens
        prefill += sum(max(0.0, first - self.now) for first, _ in live.running.values()) * (
            spec.prefill_tokens_per_s if np.isfinite(spec.prefill_tokens_per_s) else 0.0
        )
        return InstanceState(len(live.running), len(live.queue), spec.slots, prefill, decode,
                             spec.prefill_tokens_per_s, spec.seconds_per_token)  # fmt: skip

    def prefix(self, request: int) -> Prefix:
        return () if self.arrivals.prefix is None else self.arrivals.prefix[request]

    def uncached(self, request: int, j: int, *, soon: bool = False) -> float:
        """Prompt tokens of a request that instance j has to read; soon: behind those that wait there."""
        found = self.live[j].found(self.prefix(request), soon=soon) * self.live[j].spec.block_tokens
        return max(0.0, float(self.arrivals.prompt[request]) - found)

    def busy(self) -> float:
        """Share of instances with anything to do."""
        return sum(bool(live.running) for live in self.live) / len(self.live)


Place: TypeAlias = Callable[[Sequence[int], Fleet], Sequence[int]]  # requests -> an instance each
Move: TypeAlias = Callable[[Fleet, int], Sequence[tuple[int, int, int]]]  # after a placement on j: (request, from, to)
Gather: TypeAlias = Callable[[float], tuple[int, float]]  # busy share -> (requests, seconds)
ARRIVE, FINISH, FLUSH = 0, 1, 2


def simulate(
    specs: Sequence[Instance],
    arrivals: Arrivals,
    place: Place,
    *,
    gather: Gather | None = None,
    move: Move | None = None,
) -> Served:
    """Serve all requests: first come first served in each queue, `slots` at a time.

    place: called once for each batch, with the fleet as it is. gather: how many requests, or seconds, make a batch;
    None: each is placed on its own as it comes. move: may shift waiting requests between queues after a placement.
    A request holds its slot while its prompt is read (what the cache lacks) and its answer written.
    """
    n = len(arrivals.time_s)
    if np.ndim(arrivals.output) != 2 or len(arrivals.output) != n:
        raise ShapeError("output", got=np.shape(arrivals.output), expected=(n, "models"))
    if n and (np.diff(arrivals.time_s) < 0).any():
        raise ConfigError("time_s", got="falling times", expected="requests in order of time")
    fleet = Fleet(specs, arrivals)
    served = Served(np.full(n, -1), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), 0)
    order = itertools.count()
    events = [(float(t), next(order), ARRIVE, i) for i, t in enumerate(arrivals.time_s)]
    heapq.heapify(events)
    held: list[int] = []
    moves = 0

    def begin(j: int) -> None:
        live = fleet.live[j]
        while live.queue and len(live.running) < live.spec.slots:
            r = live.queue[0]
            live.leave(r, fleet.prefix(r))
            left = fleet.uncached(r, j)
            served.cached[r] = arrivals.prompt[r] - left
            first = fleet.now + left / live.spec.prefill_tokens_per_s
            finish = first + float(arrivals.output[r, live.spec.model]) * live.spec.seconds_per_token
            served.start_s[r], served.first_s[r], served.finish_s[r] = fleet.now, first, finish
            served.instance[r], live.running[r] = j, (first, finish)
            if arrivals.prefix is not None and live.spec.cache_blocks:
                live.remember(arrivals.prefix[r])
            heapq.heappush(events, (finish, next(order), FINISH, r))

    def dispatch() -> int:
        moved = 0
        for r, j in zip(held, place(held, fleet), strict=True):
            fleet.live[j].join(r, fleet.uncached(r, j, soon=True), fleet.prefix(r))
            for request, source, target in move(fleet, j) if move is not None else ():
                fleet.live[source].leave(request, fleet.prefix(request))
                fleet.live[target].join(request, fleet.uncached(request, target, soon=True), fleet.prefix(request))
                begin(target)
                moved += 1
            begin(j)
        held.clear()
        return moved

    flush_at = float("inf")
    while events:
        fleet.now, _, kind, r = heapq.heappop(events)
        if kind == FINISH:
            j = int(served.instance[r])
            del fleet.live[j].running[r]
            begin(j)
        elif kind == ARRIVE:
            held.append(r)
            size, wait = (1, 0.0) if gather is None else gather(fleet.busy())
            if len(held) >= size:
                moves, flush_at = moves + dispatch(), float("inf")
            elif flush_at == float("inf"):
                flush_at = fleet.now + wait
                heapq.heappush(events, (flush_at, next(order), FLUSH, -1))
        elif held and fleet.now >= flush_at:
            moves, flush_at = moves + dispatch(), float("inf")
    return served._replace(moves=moves)


def least_busy(requests: Sequence[int], fleet: Fleet) -> list[int]:
    """Each request to the instance with the fewest others, counting those placed just now."""
    count = [len(live.running) + len(live.queue) for live in fleet.live]
    chosen = []
    for _ in requests:
        chosen.append(min(range(len(count)), key=count.__getitem__))
        count[chosen[-1]] += 1
    return chosen


def poisson(rate: float, n: int, rng: np.random.Generator) -> Array:
    """[n] arrival times of a Poisson stream of `rate` requests per second."""
    return np.cumsum(rng.exponential(1.0 / rate, size=n))
