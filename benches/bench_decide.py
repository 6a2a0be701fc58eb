"""Microseconds of one decision: each policy by pool size, and decide() as a whole from a ready embedding.

    python -m benches.bench_decide

The first rows are the floors: taking a fixed column, drawing one at random, and one bare argmax of the utility.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from benches.machine import machine, ticks
from polyroute.constraints import fits_context, healthy, offers_needs
from polyroute.decide import decide
from polyroute.policies.budget import Budget, BudgetConfig
from polyroute.policies.deadline import Deadline
from polyroute.policies.explore import UCB, Epsilon, Softmax, Thompson
from polyroute.policies.greedy import Greedy
from polyroute.protocols import Policy
from polyroute.types import Candidate, Estimate, Estimates, Objective, Outcomes, Profile, Query

SEED = 0
DIM = 256  # width of the default static embedding
POOLS = (2, 12, 64, 256)
GOAL = Objective({"quality": 1.0, "cost": -150.0})


def measure(
    call: Callable[[], object], *, warmup: int = 20, runs: int = 1000, seconds: float = 1.0
) -> dict[str, float]:
    """Wall-clock microseconds of one call, median and 99th percentile, over `runs` calls or as many as time allows."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < warmup + runs and (time.perf_counter() < end or len(times) < warmup + 5):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e3)
    p50, p99 = np.percentile(times[warmup:], [50, 99])
    return {"p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1), "runs": len(times) - warmup}


class Linear:
    """One linear head a candidate: the cheapest router there is, so that the rest of decide() is what shows."""

    def __init__(self, pool: Sequence[Candidate], rng: np.random.Generator):
        self.head = rng.normal(size=(DIM, len(pool))) / DIM  # [d, m]
        self.usd = rng.random((1, len(pool))) * 0.01

    def fit(self, outcomes: Outcomes) -> Self:
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        x = np.stack([query.embedding for query in queries])
        mean = x @ self.head
        ones = np.ones_like(mean)
        return {"quality": Estimate(mean, 0.1 * ones), "cost": Estimate(self.usd * ones), "latency": Estimate(ones)}


def policies() -> dict[str, Policy]:
    """By the name the table prints."""
    budget = Budget(BudgetConfig(limit=0.001))
    budget.spent(0.002)
    return {
        "greedy": Greedy(),
        "greedy k=3": Greedy(3),
        "epsilon": Epsilon(0.05),
        "softmax": Softmax(0.1),
        "ucb": UCB(),
        "thompson": Thompson(),
        "deadline": Deadline(2.0),
        "budget": budget,
    }


def policy_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """From estimates to a selection, one query."""
    rows: list[dict[str, Any]] = []
    for m in POOLS:
        pool = [Candidate(f"model-{j}") for j in range(m)]
        estimates = Linear(pool, rng).predict([Query("q", embedding=rng.normal(size=DIM))], pool)
        allowed = np.ones((1, m), dtype=bool)
        floors: dict[str, Callable[[], object]] = {
            "always first": lambda: 0,
            "random": lambda m=m: int(rng.random() * m),  # type: ignore[misc]
            "bare argmax": lambda e=estimates: GOAL.utility(e).argmax(axis=1),  # type: ignore[misc]
        }
        for name, floor in floors.items():
            rows.append({"what": name, "candidates": m} | measure(floor))
        for name, policy in policies().items():
            call = lambda p=policy, e=estimates, a=allowed: p.decide(e, GOAL, a, rng)  # noqa: E731
            rows.append({"what": name, "candidates": m} | measure(call))
    return rows


def decide_rows(rng: np.random.Generator) -> list[dict[str, Any]]:
    """From a ready embedding to a decision with its reason, one query, a linear router."""
    rows: list[dict[str, Any]] = []
    for m in POOLS:
        profile = Profile(context=8192, offers=frozenset({"tools"}))
        pool = [Candidate(f"model-{j}", profile=profile) for j in range(m)]
        router = Linear(pool, rng)
        query = [Query("q", embedding=rng.normal(size=DIM), needs=frozenset({"tools"}), num_tokens=300)]
        rules = [offers_needs, fits_context, healthy({"model-1"})]
        for name, policy, constraints in (
            ("decide, greedy", Greedy(), []),
            ("decide, greedy, 3 rules", Greedy(), rules),
            ("decide, thompson, 3 rules", Thompson(), rules),
        ):
            call = lambda p=policy, c=constraints: decide(query, pool, router, p, GOAL, c, rng)  # noqa: B023, E731
            rows.append({"what": name, "candidates": m} | measure(call))
    return rows


def main() -> int:
    before, rng = ticks(), np.random.default_rng(SEED)
    rows = [*policy_rows(rng), *decide_rows(rng)]
    print(f"{'what':<28} {'candidates':>10} {'p50 us':>9} {'p99 us':>9} {'runs':>6}")
    for row in rows:
        print("{what:<28} {candidates:>10} {p50_us:>9} {p99_us:>9} {runs:>6}".format(**row))
    print(json.dumps({"bench": "decide", "machine": machine(before), "seed": SEED, "dim": DIM, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
