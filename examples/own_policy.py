"""A policy and a constraint of your own: who may be chosen, and how, without touching any router.

python examples/own_policy.py
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from polyroute import Candidate, Estimates, Greedy, Objective, Profile, Query, Rng, Selection
from polyroute.constraints import in_region
from polyroute.decide import decide
from polyroute.routers.attributes import Attributes
from polyroute.routers.mix import Together
from polyroute.routers.price import Price


class CheapestGoodEnough:
    """The cheapest candidate whose expected quality reaches a bar; where none does, the best."""

    def __init__(self, bar: float):
        self.bar = bar

    def decide(self, estimates: Estimates, objective: Objective, allowed: np.ndarray, rng: Rng) -> Selection:
        quality, cost = estimates["quality"].mean, estimates["cost"].mean  # [n, m]
        enough = allowed & (quality >= self.bar)
        cheapest = np.where(enough, cost, np.inf).argmin(axis=1)
        best = np.where(allowed, quality, -np.inf).argmax(axis=1)
        index = np.where(enough.any(axis=1), cheapest, best)[:, None]
        return Selection(index, np.take_along_axis(objective.utility(estimates), index, axis=1))


def short_only(queries: Sequence[Query], pool: Sequence[Candidate]) -> np.ndarray:
    """A constraint is a function of queries and pool, [n, m] bool. Its name is what explanations show."""
    short = np.array([query.num_tokens or 0 for query in queries]) < 2_000
    tiny = np.array([candidate.id == "tiny" for candidate in pool])
    return short[:, None] | ~tiny[None]


def main() -> int:
    prices = {"tiny": (0.05, "eu"), "middle": (0.5, "eu"), "large": (5.0, "eu"), "elsewhere": (0.01, "us")}
    quality = {"tiny": 0.6, "middle": 0.75, "large": 0.9, "elsewhere": 0.95}
    pool = [Candidate(name, profile=Profile(p, p, region=region)) for name, (p, region) in prices.items()]
    queries = [Query(f"q{i}", num_tokens=200 * i) for i in range(20)]
    router = Together([Attributes({"quality": quality}, scale=False), Price()])  # the same quality on every query
    rules = [in_region({"eu"}), short_only]
    policies = {"bar at 0.5": CheapestGoodEnough(0.5), "bar at 0.7": CheapestGoodEnough(0.7), "greedy": Greedy()}
    for name, policy in policies.items():
        decisions = decide(queries, pool, router, policy, Objective({"quality": 1.0, "cost": -1.0}), rules)
        chosen = Counter(decision.candidate_ids[0] for decision in decisions)
        print(f"{name:<10} {dict(chosen)}   the last: {decisions[-1].because}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
