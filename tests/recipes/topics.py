"""A table in which the topic decides: four models, four topics, each model good at its own."""

from __future__ import annotations

import numpy as np

from polyroute.types import Candidate, Outcomes, Query, Rng


def each_good_at_one_topic(n: int, rng: Rng) -> Outcomes:
    """n queries with embeddings [6] near their topic's axis; right 85 times of 100 at home, 45 elsewhere."""
    topic = rng.integers(4, size=n)
    x = np.eye(6)[topic] + 0.1 * rng.normal(size=(n, 6))
    chance = np.where(np.eye(4)[topic] > 0, 0.85, 0.45)
    queries = [Query(f"q{i}", "A short text.", row.astype(np.float32)) for i, row in enumerate(x)]
    pool = [Candidate(f"model-{j}") for j in range(4)]
    values = {"quality": (rng.random((n, 4)) < chance).astype(float)}
    return Outcomes(queries, pool, values, np.ones((n, 4), bool), {"dataset": np.array([f"topic-{t}" for t in topic])})
