"""How long the decision itself takes: `decide()` on 12 candidates from a ready embedding, with the shipped router."""

from __future__ import annotations

import time
from collections.abc import Callable

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
    """p50_us and p99_us of one decision, or not_available with the reason."""
    return {"not_available": "no shipped router yet"}
