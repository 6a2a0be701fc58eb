"""System 84, DualMap: a request goes to one of the two instances its prefix hashes to, by cache or by queue.

Parts: policies/affinity (adaptive keys, two rings, the choice, moves between queues), kernels/choices (rings),
offline/fleet (the simulator it runs in here). `near` holds the rules it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from polyroute.kernels.choices import owners, ring_hash, ring_of
from polyroute.offline.fleet import Fleet, Instance, Place
from polyroute.policies.affinity import DualMap, HotPrefixes, moves


@dataclass(slots=True)
class DualMapPlacement:
    """DualMap in a simulated fleet whose instances read prompts at one speed each."""

    dual: DualMap
    pairs: dict[int, tuple[str, str]] = field(default_factory=dict)  # request -> its two homes

    def __call__(self, requests: Sequence[int], fleet: Fleet) -> list[int]:
        at = {live.spec.id: j for j, live in enumerate(fleet.live)}
        assert fleet.arrivals.prefix is not None
        chosen = []
        for r in requests:
            pair = self.pairs[r] = self.dual.pair(fleet.arrivals.prefix[r])
            name = self.dual.place(
                pair,
                cached=lambda x, r=r: -fleet.uncached(r, at[x], soon=True),  # type: ignore[misc]
                first_token_s=lambda x, r=r: first_token_s(fleet, r, at[x]),  # type: ignore[misc]
                load=lambda x: queue_s(fleet, at[x]),
            )
            chosen.append(at[name])
        return chosen

    def move(self, fleet: Fleet, j: int) -> list[tuple[int, int, int]]:
        """Requests to move off instance j where its queue is longer than the limit: at most one a placement.

        Looked at are the last sixteen, who wait longest and so gain most.
        """
        at = {live.spec.id: k for k, live in enumerate(fleet.live)}
        here, live = fleet.live[j].spec.id, fleet.live[j]
        if not live.queue or queue_s(fleet, j) <= self.dual.slo_s:
            return []

        def partner(r: int) -> str:
            a, b = self.pairs[r]
            return b if a == here else a

        found = moves(
            list(live.queue)[-16:], here, partner, lambda r, x: first_token_s(fleet, r, at[x]), self.dual.slo_s
        )
        return [(r, j, at[name]) for r, name in found[:1]]


def queue_s(fleet: Fleet, j: int) -> float:
    """Seconds of prompt reading that wait on an instance."""
    live = fleet.live[j]
    left = sum(max(0.0, first - fleet.now) for first, _ in live.running.values())
    return left + live.waiting_tokens / live.spec.prefill_tokens_per_s


def first_token_s(fleet: Fleet, request: int, j: int) -> float:
    """Expected seconds until the first token: what waits there and what must be read."""
    live = fleet.live[j]
    if request in live.reading:
        return queue_s(fleet, j)  # it stands there already; the last of the queue is what matters to those behind it
    return queue_s(fleet, j) + fleet.uncached(request, j, soon=True) / live.spec.prefill_tokens_per_s


def near(fleet_of: Sequence[Instance], *, blocks: int = 1) -> dict[str, Place]:
    """What DualMap is held against: one hashed home; the least loaded; the most cached; the soonest of all,
    which asks every instance for its state of this very moment."""
    ring = ring_of([spec.id for spec in fleet_of], salt=1)
    at = {spec.id: j for j, spec in enumerate(fleet_of)}

    def single(requests: Sequence[int], fleet: Fleet) -> list[int]:
        assert fleet.arrivals.prefix is not None
        return [at[owners(ring, ring_hash(fleet.arrivals.prefix[r][:blocks], 1))[0]] for r in requests]

    def least(requests: Sequence[int], fleet: Fleet) -> list[int]:
        return [min(range(len(fleet.live)), key=lambda j: queue_s(fleet, j)) for _ in requests]

    def cached(requests: Sequence[int], fleet: Fleet) -> list[int]:
        return [
            min(range(len(fleet.live)), key=lambda j: (fleet.uncached(r, j, soon=True), queue_s(fleet, j)))
            for r in requests
        ]

    def soonest(requests: Sequence[int], fleet: Fleet) -> list[int]:
        return [min(range(len(fleet.live)), key=lambda j: first_token_s(fleet, r, j)) for r in requests]

    return {"single hash": single, "least loaded": least, "most cached": cached, "soonest of all": soonest}


def dualmap(fleet_of: Sequence[Instance], *, slo_s: float = 5.0, adaptive: bool = True) -> DualMapPlacement:
    """DualMap for a fleet. adaptive: lengthen the keys of hot prefixes."""
    hot = HotPrefixes() if adaptive else HotPrefixes(longest=1)
    return DualMapPlacement(DualMap([spec.id for spec in fleet_of], slo_s=slo_s, hot=hot))
