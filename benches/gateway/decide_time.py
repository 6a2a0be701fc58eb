"""How long the decision itself takes: `decide()` on 12 candidates from a ready embedding, with the shipped router."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benches.gateway.measure import TEMPLATES, TOPICS
from benches.gateway.table import percentile

NUM_CANDIDATES = 12


def time_calls(call: Callable[[int], object], *, warmup: int = 200, runs: int = 3000) -> dict[str, object]:
    """p50 and p99 of single calls, microseconds. `call` gets a running number."""
    times = []
    for i in range(warmup + runs):
        begin = time.perf_counter_ns()
        call(i)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    kept = times[warmup:]
    return {"p50_us": round(percentile(kept, 0.5), 1), "p99_us": round(percentile(kept, 0.99), 1), "runs": runs}


def measure_decide() -> dict[str, object]:
    """p50_us and p99_us of one decision of the serving router, or not_available with the reason."""
    try:
        return decide_on_twelve()
    except Exception as error:  # whatever it is, the rows that took minutes are still printed
        return {"not_available": f"{type(error).__name__}: {error}"}


def decide_on_twelve() -> dict[str, object]:
    """The shipped router as the gateway serves it, over a pool of made-up models."""
    from polyroute.constraints import fits_context, offers_needs
    from polyroute.decide import decide
    from polyroute.gateway.build import load_router, serving_router
    from polyroute.gateway.choice import objective_for
    from polyroute.policies.greedy import Greedy
    from polyroute.signals import featuriser
    from polyroute.types import Candidate, Profile, Query

    fitted = load_router("default")
    embed = featuriser(fitted.features)
    pool = [
        Candidate(
            f"model-{j}", profile=Profile(0.1 * 1.5**j, 0.4 * 1.5**j, 128_000, ability={"general": 0.2 * j - 0.5})
        )
        for j in range(NUM_CANDIDATES)
    ]
    router = serving_router(fitted, pool, embed.dim)
    texts = [t.format(topic, i) for i, t in enumerate(TEMPLATES) for topic in TOPICS]
    rows = zip(texts, embed(texts), strict=True)
    queries = [Query(str(i), text, row, num_tokens=20) for i, (text, row) in enumerate(rows)]
    goal, policy, rng = objective_for(0.3, pool), Greedy(), np.random.default_rng(0)
    constraints = [offers_needs, fits_context]
    found = time_calls(lambda i: decide([queries[i % len(queries)]], pool, router, policy, goal, constraints, rng))
    return found | {"candidates": NUM_CANDIDATES, "router": fitted.name}
