"""Two homes a prefix in a simulated fleet: more in time than one, with the same hits."""

from __future__ import annotations

import numpy as np

from polyroute.offline.fleet import Arrivals, Instance, poisson, simulate
from polyroute.recipes.dualmap import dualmap, near

FLEET = [Instance(id=f"i{k}", prefill_tokens_per_s=20_000.0, cache_blocks=80) for k in range(6)]


def trace(rate: float, n: int = 900) -> Arrivals:
    rng = np.random.default_rng(5)
    share = np.arange(1, 101.0) ** -1.5
    which = rng.choice(100, size=n, p=share / share.sum())
    prefixes = [(int(p) % 9, *(100 + int(p) * 8 + k for k in range(7))) for p in which]
    return Arrivals(poisson(rate, n, rng), np.full(n, 5120.0), np.zeros((n, 1)), None, prefixes)


def test_two_homes_keep_the_hits_and_lose_the_hotspot():
    arrivals, two, rules = trace(70.0), dualmap(FLEET), near(FLEET, blocks=2)
    dual = simulate(FLEET, arrivals, two, move=two.move)
    single, least = (simulate(FLEET, arrivals, rules[name]) for name in ("single hash", "least loaded"))
    waits = [np.percentile(s.first_s - arrivals.time_s, 90) for s in (dual, single, least)]
    assert waits[0] < 0.5 * waits[1]
    hits = [s.cached.sum() for s in (dual, single, least)]
    assert hits[0] > 0.95 * hits[1] > hits[2]


def test_a_request_stands_at_one_of_its_homes_only():
    arrivals, two = trace(90.0), dualmap(FLEET, slo_s=0.5)
    served = simulate(FLEET, arrivals, two, move=two.move)
    assert served.moves > 0
    names = [spec.id for spec in FLEET]
    assert all(names[j] in two.pairs[r] for r, j in enumerate(served.instance.tolist()))


def test_every_rule_places_everything():
    arrivals = trace(40.0, 200)
    for rule in near(FLEET).values():
        assert (simulate(FLEET, arrivals, rule).finish_s > 0).all()
