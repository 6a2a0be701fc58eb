"""Fused placement in a simulated fleet: quick under a burst, and its batch does not herd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polyroute.offline.fleet import Arrivals, poisson, simulate
from polyroute.policies.assign import Lateness, gathering
from polyroute.recipes.routebalance import PRESET, FusedPlacement, ModelFirst, thirteen


def world(rate: float = 60.0, n: int = 500):
    rng = np.random.default_rng(2)
    quality = np.clip(rng.normal([0.5, 0.55, 0.6, 0.65], 0.1, size=(n, 4)), 0, 1)
    output = rng.lognormal(5.0, 0.7, size=(n, 4))
    prompt = rng.integers(50, 500, size=n).astype(float)
    cost = output * np.array([0.1, 0.2, 0.6, 1.0])
    return quality, cost, Arrivals(poisson(rate, n, rng), prompt, output)


def latency(place, arrivals):
    served = simulate(thirteen(), arrivals, place, gather=gathering)
    return served.finish_s - arrivals.time_s


def test_live_load_keeps_answers_in_time_where_the_model_alone_does_not():
    quality, cost, arrivals = world()
    fused = latency(FusedPlacement(quality, cost, lateness=Lateness()), arrivals)
    decoupled = latency(ModelFirst(quality, cost), arrivals)
    assert np.percentile(fused, 95) < PRESET.latency_s
    assert fused.mean() < 0.5 * decoupled.mean()


def test_dead_reckoning_spreads_a_batch():
    quality, cost, arrivals = world(120.0)
    fused = latency(FusedPlacement(quality, cost), arrivals)
    herd = latency(FusedPlacement(quality, cost, replace(PRESET, reckon=False)), arrivals)
    assert fused.mean() < herd.mean()


def test_a_fixed_latency_moves_the_choice_of_model():
    quality, cost, _ = world(n=50)
    config = replace(PRESET, latency=0.5)
    fixed = ModelFirst(quality, cost, config, latency_s=np.array([1.0, 2.0, 4.0, 8.0])).choice
    assert fixed.mean() < ModelFirst(quality, cost, config).choice.mean()
