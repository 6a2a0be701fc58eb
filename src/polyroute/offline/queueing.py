"""How many servers a stream needs: Erlang's formula, and the smallest fleet that keeps a promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError
from polyroute.types import Array

BUSY_CAP = 0.85  # utilisation above which a fleet is too small, whatever the formula says


def erlang_c(servers: int, load: float) -> float:
    """P(an arrival has to wait) with exponential service. load: arrival rate x mean service, in servers.

    1 where the load is the servers' or more. For one server it is the load, for two 2 u^2 / (1 + u) at utilisation u.
    """
    if servers < 1 or not load >= 0:
        raise ConfigError("servers, load", got=(servers, load), expected="1 server or more and a load of 0 or more")
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang B, by its recursion: no factorials to overflow
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return servers * blocked / (servers - load * (1.0 - blocked))


def mean_wait(servers: int, rate: float, service_s: float, variation: float = 1.0) -> float:
    """Mean seconds in the queue. variation: standard deviation of service over its mean; 1: exponential, exact.

    Source: the correction (1 + variation^2) / 2 for other services, Kimura 1986 (doi:10.1287/opre.34.1.100), an
    approximation; it is exact for one server.
    """
    load = rate * service_s
    if load >= servers:
        return math.inf
    return erlang_c(servers, load) * service_s / (servers - load) * (1.0 + variation**2) / 2.0


def wait_quantile(servers: int, rate: float, service_s: float, share: float, variation: float = 1.0) -> float:
    """Seconds that `share` of the arrivals wait at most; exact for exponential service, else scaled as the mean is."""
    load = rate * service_s
    if load >= servers:
        return math.inf
    waits = erlang_c(servers, load)
    if waits <= 1.0 - share:
        return 0.0
    tail = math.log(waits / (1.0 - share)) * service_s / (servers - load)
    return tail * (1.0 + variation**2) / 2.0


class Accelerator(NamedTuple):
    """What one GPU does for requests of a given window. Times per step of one batch of sequences."""

    kv_tokens: float = 262_144.0  # cache tokens it holds
    most_sequences: int = 256
    base_s: float = 0.008  # seconds of a step that writes one token for each sequence
    each_s: float = 0.00025  # more for each sequence in the batch
    prefill_tokens_per_s: float = 20_000.0

    def sequences(self, window: float) -> int:
        """Requests of a window (tokens) that fit at once: doubling the window halves them."""
        return max(1, min(self.most_sequences, int(self.kv_tokens // window)))

    def seconds_per_token(self, window: float) -> float:
        return self.base_s + self.each_s * self.sequences(window)


class Sizing(NamedTuple):
    """A pool that keeps its promise."""

    gpus: int
    sequences: int  # at once, on each
    busy: float  # utilisation
    first_token_s: float  # the promised share of requests has its first token by then


def pool_size(
    rate: float, prompt: Array, output: Array, window: float, gpu: Accelerator = Accelerator(), *,
    first_token_s: float = 2.0, share: float = 0.99,
) -> Sizing:  # fmt: skip
    """The fewest GPUs for which `share` of requests get their first token in time, at no more than `BUSY_CAP`.

    rate: requests per second, 0 for an empty pool. prompt, output: [n] tokens of a sample. window: tokens that every
    sequence reserves. Raises: ConfigError where the prompts alone take longer than the promise.
    """
    slots, step = gpu.sequences(window), gpu.seconds_per_token(window)
    if not len(prompt) or rate <= 0:
        return Sizing(0, slots, 0.0, 0.0)
    service = np.asarray(prompt) / gpu.prefill_tokens_per_s + np.asarray(output) * step
    mean, variation = float(service.mean()), float(service.std() / service.mean())
    read = float(np.quantile(np.asarray(prompt) / gpu.prefill_tokens_per_s, share))
    if read > first_token_s:
        raise ConfigError("first_token_s", got=first_token_s, expected=f"{read:.3g} s or more, which reading takes")
    gpus = max(1, math.ceil(rate * mean / BUSY_CAP / slots))
    while (wait := wait_quantile(gpus * slots, rate, mean, share, variation)) + read > first_token_s:
        gpus += 1
    return Sizing(gpus, slots, rate * mean / (gpus * slots), wait + read)


class Split(NamedTuple):
    """Two pools, parted by the tokens a request may come to."""

    boundary: float  # requests of at most so many tokens go to the short pool
    short: Sizing
    long: Sizing

    @property
    def gpus(self) -> int:
        return self.short.gpus + self.long.gpus


def best_split(
    rate: float, prompt: Array, output: Array, boundaries: Sequence[float], window: float,
    gpu: Accelerator = Accelerator(), *, first_token_s: float = 2.0,
) -> Split:  # fmt: skip
    """The boundary for which both pools together need the fewest GPUs. window: tokens the long pool reserves.

    The whole stream in one pool is `pool_size(rate, prompt, output, window)`; a boundary at `window` is the same.
    """
    total = np.asarray(prompt) + np.asarray(output)
    found = []
    for boundary in boundaries:
        fits = total <= boundary
        part = float(fits.mean())
        short = pool_size(rate * part, prompt[fits], output[fits], boundary, gpu, first_token_s=first_token_s)
        rest = pool_size(rate * (1 - part), prompt[~fits], output[~fits], window, gpu, first_token_s=first_token_s)
        found.append(Split(float(boundary), short, rest))
    if not found:
        raise ConfigError("boundaries", got=boundaries, expected="at least one number of tokens")
    return min(found, key=lambda split: split.gpus)
