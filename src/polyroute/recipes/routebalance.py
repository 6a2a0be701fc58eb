"""System 31, RouteBalance: a batch of requests onto instances, by quality, price and live load in one choice.

github.com/AKafakA/route-balance. Parts: policies/assign (batch, dead reckoning, limits, scores), offline/fleet (the
simulator), any router of quality; here the shrunk kNN. The live fleet is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from polyroute.offline.fleet import Fleet, Instance
from polyroute.policies.assign import AssignConfig, Batch, InstanceState, Lateness, assign
from polyroute.types import Array

# Weights are ours. The hard limit is on by default, since a bounded latency term cannot stop an overload; behind it the
# term is small: a larger one gives quality away for seconds that nobody asked for.
PRESET = AssignConfig(quality=0.8, cost=0.1, latency=0.05, latency_s=10.0)


class FusedPlacement:
    """Places batches in a simulated fleet. quality, cost: [n, t] expected of each request on each model."""

    def __init__(
        self,
        quality: Array,
        cost: Array,
        config: AssignConfig = PRESET,
        *,
        lateness: Lateness | None = None,
        seen: Callable[[list[InstanceState]], list[InstanceState]] = lambda states: states,
    ):
        self.quality, self.cost, self.config, self.seen = quality, cost, config, seen
        self.lateness = lateness

    def __call__(self, requests: Sequence[int], fleet: Fleet) -> list[int]:
        model = [live.spec.model for live in fleet.live]
        rows = np.asarray(requests)
        quality, cost, output = (values[rows][:, model] for values in (self.quality, self.cost, fleet.expected))
        batch = Batch(quality, cost, output, fleet.arrivals.prompt[rows])
        states = self.seen([fleet.state(j) for j in range(len(fleet.live))])
        return [place.column for place in assign(batch, states, self.config, lateness=self.lateness)]


class ModelFirst:
    """The baseline: first the model, by quality, price and a fixed latency a model, then its least loaded replica.

    latency_s: [t] fixed expectation of each model; None: load plays no part in choosing the model.
    """

    def __init__(self, quality: Array, cost: Array, config: AssignConfig = PRESET, latency_s: Array | None = None):
        score = config.quality * quality - config.cost * cost / cost.max(axis=1, keepdims=True)
        if latency_s is not None:
            score = score - config.latency * latency_s / latency_s.max()
        self.choice = score.argmax(axis=1)

    def __call__(self, requests: Sequence[int], fleet: Fleet) -> list[int]:
        count = [(len(live.running) + len(live.queue)) / live.spec.slots for live in fleet.live]
        chosen = []
        for r in requests:
            replicas = [j for j, live in enumerate(fleet.live) if live.spec.model == self.choice[r]]
            chosen.append(min(replicas, key=count.__getitem__))
            count[chosen[-1]] += 1 / fleet.live[chosen[-1]].spec.slots
        return chosen


def thirteen() -> list[Instance]:
    """Thirteen instances in four tiers, small to large. Slots and speeds are ours."""
    tiers = ((5, 16, 0.010, 20_000.0), (4, 12, 0.016, 12_000.0), (3, 8, 0.025, 8_000.0), (1, 8, 0.040, 5_000.0))
    return [
        Instance(id=f"tier{t}-{k}", model=t, slots=slots, seconds_per_token=step, prefill_tokens_per_s=read)
        for t, (count, slots, step, read) in enumerate(tiers)
        for k in range(count)
    ]
