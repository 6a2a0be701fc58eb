"""System 41, Workload-Router-Pool: the kind of request, the rule that routes it and the size of its pool, as one plan.

A vision paper; its numbers are projections and are not repeated here. Parts: policies/pools (tokens from bytes, the
split, failure counts, gates), offline/queueing (Erlang's formula, pool sizes), offline/fleet (the simulator).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.offline.fleet import Arrivals, Fleet, Instance, Place
from polyroute.offline.queueing import Accelerator, Sizing, Split, best_split, pool_size
from polyroute.policies.pools import PoolSplit
from polyroute.types import Array

BOUNDARIES = (1024.0, 2048.0, 4096.0, 8192.0, 16_384.0)  # tokens tried


def plan(
    rate: float,
    prompt: Array,
    output: Array,
    window: float,
    gpu: Accelerator = Accelerator(),
    *,
    first_token_s: float = 2.0,
) -> tuple[Sizing, Split]:
    """One pool for everything, and the best two: what each needs to give 99 in 100 first tokens in time.

    rate: requests per second. prompt, output: [n] tokens of a sample of the workload. window: tokens of the longest.
    """
    one = pool_size(rate, prompt, output, window, gpu, first_token_s=first_token_s)
    return one, best_split(rate, prompt, output, (*BOUNDARIES, window), window, gpu, first_token_s=first_token_s)


def instances(sizing: Sizing, window: float, gpu: Accelerator, name: str) -> list[Instance]:
    """A pool of that size for the simulator."""
    return [
        Instance(id=f"{name}-{k}", slots=sizing.sequences, prefill_tokens_per_s=gpu.prefill_tokens_per_s,
                 seconds_per_token=gpu.seconds_per_token(window))
        for k in range(sizing.gpus)
    ]  # fmt: skip


def to_pools(split: PoolSplit, expected_tokens: Array, num_short: int, arrivals: Arrivals) -> Place:
    """Placement where the first `num_short` instances are the short pool: the pool by size, then the least loaded."""

    def place(requests: Sequence[int], fleet: Fleet) -> list[int]:
        count = np.array([(len(live.running) + len(live.queue)) / live.spec.slots for live in fleet.live])
        chosen = []
        for r in requests:
            short = split.pool(float(expected_tokens[r]), float(arrivals.output[r].max())) == "short"
            among = np.arange(num_short) if short and num_short else np.arange(num_short, len(count))
            among = among if len(among) else np.arange(len(count))
            chosen.append(int(among[count[among].argmin()]))
            count[chosen[-1]] += 1 / fleet.live[chosen[-1]].spec.slots
        return chosen

    return place
