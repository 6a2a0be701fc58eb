"""Small tables of outcomes for the routers' tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from polyroute.types import Array, Candidate, Outcomes, Profile, Query


def queries_of(x: Array, *, tokens: Array | None = None, prefix: str = "q") -> list[Query]:
    """One query a row of x [n, d]."""
    count = [None] * len(x) if tokens is None else [int(t) for t in tokens]
    return [Query(f"{prefix}{i}", embedding=row, num_tokens=count[i]) for i, row in enumerate(x)]


def table_of(x: Array, y: Array, metric: str = "quality", *, prefix: str = "q") -> Outcomes:
    """Outcomes y [n, m] of one metric on rows x [n, d]; NaN is not observed."""
    pool = [Candidate(f"m{j}") for j in range(y.shape[1])]
    return Outcomes(queries_of(x, prefix=prefix), pool, {metric: y}, np.isfinite(y))


def toy(n: int = 60, m: int = 4, d: int = 6, *, seed: int = 0, missing: float = 0.2, prefix: str = "q") -> Outcomes:
    """n queries about two subjects, m candidates good at one or the other, every metric, some cells not observed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    subject = (x[:, 0] > 0).astype(int)
    chance = np.where(subject[:, None] == np.arange(m) % 2, 0.8, 0.4)
    tokens_in, tokens_out = rng.integers(5, 500, size=n), rng.lognormal(4.0, 0.5, size=(n, m)).round()
    price = 0.5 * 2.0 ** np.arange(m)
    pool = [
        Candidate(f"m{j}", profile=Profile(price[j], 2 * price[j], tokens_per_s=50.0 / (j + 1), first_token_s=0.2))
        for j in range(m)
    ]
    values = {
        "quality": (rng.random((n, m)) < chance).astype(float),
        "cost": (tokens_in[:, None] * price + 2 * tokens_out * price) / 1e6,
        "output_tokens": tokens_out,
        "latency": 0.2 + tokens_out * np.arange(1, m + 1) / 50 * rng.uniform(0.8, 1.6, size=(n, m)),
    }
    seen = rng.random((n, m)) >= missing
    labels = {"dataset": np.where(subject, "law", "maths"), "group": np.array([f"g{i // 2}" for i in range(n)])}
    masked = {name: np.where(seen, column, np.nan) for name, column in values.items()}
    return Outcomes(queries_of(x, tokens=tokens_in, prefix=prefix), pool, masked, seen, labels)


def renamed(outcomes: Outcomes, names: Sequence[str]) -> Outcomes:
    """The same table about candidates of other names."""
    pool = [replace(candidate, id=name) for candidate, name in zip(outcomes.pool, names, strict=True)]
    return Outcomes(outcomes.queries, pool, outcomes.values, outcomes.observed, outcomes.labels)
