"""Pools by length: fewer GPUs for the same promise, which the simulator keeps."""

from __future__ import annotations

import numpy as np

from polyroute.offline.fleet import Arrivals, poisson, simulate
from polyroute.offline.queueing import Accelerator
from polyroute.policies.pools import PoolSplit
from polyroute.recipes.workload_pools import instances, plan, to_pools


def test_a_plan_saves_gpus_and_keeps_its_promise_when_simulated():
    rng, n, gpu = np.random.default_rng(0), 1500, Accelerator()
    prompt = np.where(rng.random(n) < 0.05, 20_000.0, rng.lognormal(6, 0.5, n))
    output = rng.lognormal(5, 0.5, n)
    one, two = plan(60.0, prompt, output, 32_768.0, gpu)
    assert two.gpus <= 0.85 * one.gpus
    arrivals = Arrivals(poisson(60.0, n, rng), prompt, output[:, None])
    short = instances(two.short, two.boundary, gpu, "short")
    fleet = short + instances(two.long, 32_768.0, gpu, "long")
    served = simulate(fleet, arrivals, to_pools(PoolSplit(two.boundary), prompt, len(short), arrivals))
    assert (served.first_s - arrivals.time_s <= 2.0).mean() >= 0.99
    fits = prompt + output <= two.boundary
    assert (served.instance[fits] < len(short)).all()
    assert (served.instance[~fits] >= len(short)).all()
