"""Small outcome tables whose truth is known: for tests, examples and a first try without data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.types import Array, Candidate, Outcomes, Profile, Query, Rng

TOPICS = (
    "integral derivative matrix theorem equation algebra polynomial proof",
    "function compile python loop array bug exception class",
    "river mountain capital country border ocean climate continent",
    "melody chord rhythm violin orchestra concert tempo harmony",
    "cell protein enzyme genome bacteria tissue membrane organism",
    "contract court plaintiff statute liability appeal verdict clause",
)
SPLITS = ("train", "valid", "test")


class Synthetic(NamedTuple):
    outcomes: Outcomes
    success: Array  # [n, m] the probability each outcome was drawn with


def synthetic_outcomes(n: int = 300, m: int = 4, d: int = 16, *, rng: Rng, num_topics: int = 3) -> Synthetic:
    """n queries about a few topics answered by m models, right or wrong, [n, m].

    Dearer models are better on average and every model has topics it is good at, so routing pays. A query's embedding
    [d] is its topic's direction plus noise; its text is made of the topic's words. Every fifth query shares the group
    and the topic of the one before. Splits are 60 % train, 20 % valid, 20 % test, by group.
    """
    topic = rng.integers(num_topics, size=n)
    group = np.cumsum(np.arange(n) % 5 != 4)
    topic = topic[np.searchsorted(group, group)]  # a duplicate has the topic of the first of its group
    centres = rng.normal(size=(num_topics, d))
    x = centres[topic] + 0.5 * rng.normal(size=(n, d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    skill = np.linspace(-1.0, 1.5, m) + rng.normal(size=(num_topics, m))
    difficulty = 0.5 * rng.normal(size=n)
    success = 1 / (1 + np.exp(difficulty[:, None] - skill[topic]))
    price = 0.2 * 10 ** np.linspace(0, 2, m) if m > 1 else np.full(m, 0.2)  # USD per million tokens
    tokens_in = rng.integers(20, 200, size=n)
    tokens_out = rng.poisson(100, size=(n, m)) + 1
    cost = (tokens_in[:, None] + tokens_out) * price / 1e6
    split = np.array(SPLITS)[rng.choice(3, p=[0.6, 0.2, 0.2], size=group.max() + 1 if n else 0)[group]]
    queries = [Query(f"synthetic-{i}", words(int(topic[i]), rng), x[i], num_tokens=int(tokens_in[i])) for i in range(n)]
    pool = [Candidate(f"model-{j}", profile=Profile(float(price[j]), float(price[j]))) for j in range(m)]
    values = {
        "quality": (rng.random((n, m)) < success).astype(float),
        "cost": cost,
        "output_tokens": tokens_out.astype(float),
    }
    labels = {"dataset": np.array([f"topic-{t}" for t in topic]), "split": split,
              "group": np.array([f"group-{g}" for g in group])}  # fmt: skip
    return Synthetic(Outcomes(queries, pool, values, np.ones((n, m), dtype=bool), labels), success)


def words(topic: int, rng: Rng, count: int = 8) -> str:
    """A text of a topic's words."""
    return " ".join(rng.choice(TOPICS[topic % len(TOPICS)].split(), size=count))
