"""Ways to say how foreign a query is to each of several sets of known queries. Each scores [n, m], higher is stranger.

    Distance      how far the nearest known queries are                     reads embeddings
    Spread        how far from the middle, in units of the set's own spread reads embeddings
    Coverage      share of the text's n-grams that the set never used       reads text
    Probability   1 - P(in the set) by one-against-the-rest logistic heads  reads text

`novelty.py` brings them to one scale and sets thresholds. `members` [n, m] says which query belongs to which set; a set
needs a member. All are fitted from the sets alone: no example of a foreign query is ever needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from polyroute.errors import ShapeError
from polyroute.routers.heads import sigmoid
from polyroute.routers.ngrams import ngrams
from polyroute.routers.rows import check_shape, embeddings, unit_rows
from polyroute.types import Array, Query, Rng


class Detector(Protocol):
    """One way to score. `arrays` is everything fitted, as it is saved."""

    arrays: dict[str, Array]

    def fit(self, queries: Sequence[Query], members: Array, rng: Rng) -> Self: ...

    def score(self, queries: Sequence[Query]) -> Array: ...

    def checked(self, arrays: Mapping[str, Array], m: int) -> dict[str, Array]:
        """The arrays of a file, if they fit each other and m sets. Raises: ShapeError."""
        ...


class Distance:
    """Mean cosine distance to the k nearest of at most `most` known queries of the set, 0..2."""

    def __init__(self, k: int = 10, most: int = 1000):
        self.k, self.most = k, most
        self.arrays: dict[str, Array] = {}

    def fit(self, queries: Sequence[Query], members: Array, rng: Rng) -> Self:
        x = unit_rows(embeddings(queries)).astype(np.float32)
        kept = []
        for member in members.T:
            rows = np.flatnonzero(member)
            kept.append(x[rows if len(rows) <= self.most else rng.choice(rows, self.most, replace=False)])
        ends = np.cumsum([len(some) for some in kept])
        self.arrays = {"known": np.concatenate(kept), "ends": ends}  # [r, d], and where each set ends in it [m]
        return self

    def score(self, queries: Sequence[Query]) -> Array:
        known, ends = self.arrays["known"], self.arrays["ends"]
        x = unit_rows(embeddings(queries, known.shape[1])).astype(np.float32)
        alike = known @ x[0] if len(x) == 1 else x @ known.T
        out = np.empty((len(x), len(ends)))
        for j, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            k = min(self.k, end - start)
            part = alike.reshape(len(x), -1)[:, start:end]
            out[:, j] = 1 - np.partition(part, part.shape[1] - k, axis=1)[:, -k:].mean(axis=1)
        return out

    def checked(self, arrays: Mapping[str, Array], m: int) -> dict[str, Array]:
        known = check_shape("known", arrays["known"], (None, None))
        ends = check_shape("ends", arrays["ends"], (m,))
        if m and (ends[-1] != len(known) or (np.diff(ends, prepend=0) < 1).any()):
            raise ShapeError("known", got=known.shape, expected=(int(ends[-1]), "d"))
        return {"known": known, "ends": ends}


class Spread:
    """Mahalanobis distance to the set's mean, its covariance drawn to a multiple of the identity by `shrink`."""

    def __init__(self, shrink: float = 0.1):
        self.shrink = shrink
        self.arrays: dict[str, Array] = {}

    def fit(self, queries: Sequence[Query], members: Array, rng: Rng) -> Self:
        x = embeddings(queries).astype(float)
        means, whiten = [], []
        for member in members.T:
            mean = x[member].mean(axis=0)
            centred = x[member] - mean
            covariance = centred.T @ centred / len(centred)
            level = max(float(np.trace(covariance)) / len(mean), 1e-9)
            values, vectors = np.linalg.eigh((1 - self.shrink) * covariance + self.shrink * level * np.eye(len(mean)))
            means.append(mean)
            whiten.append(vectors / np.sqrt(values))
        self.arrays = {"mean": np.stack(means).astype(np.float32), "whiten": np.stack(whiten).astype(np.float32)}
        return self

    def score(self, queries: Sequence[Query]) -> Array:
        mean, whiten = self.arrays["mean"], self.arrays["whiten"]  # [m, d], [m, d, d]
        x = embeddings(queries, mean.shape[1]).astype(np.float32)
        out = np.empty((len(x), len(mean)))
        for j in range(len(mean)):
            white = (x - mean[j]) @ whiten[j]
            out[:, j] = np.sqrt(np.vecdot(white, white))
        return out

    def checked(self, arrays: Mapping[str, Array], m: int) -> dict[str, Array]:
        mean = check_shape("mean", arrays["mean"], (m, None))
        d = mean.shape[1]
        return {"mean": mean, "whiten": check_shape("whiten", arrays["whiten"], (m, d, d))}


class Coverage:
    """Share of the text's character n-grams that fewer than `least` of the set's texts contain, 0..1.

    Text in a language or a format that the set lacks is found whatever the embedding makes of it.
    """

    def __init__(self, buckets: int = 1 << 16, least: int = 2):
        self.buckets, self.least = buckets, least
        self.arrays: dict[str, Array] = {}

    def fit(self, queries: Sequence[Query], members: Array, rng: Rng) -> Self:
        count = np.zeros((members.shape[1], self.buckets), dtype=np.int32)
        for query, row in zip(queries, members, strict=True):
            count[np.ix_(row, np.unique(ngrams(query.text, self.buckets)))] += 1
        self.arrays = {"used": count >= np.minimum(self.least, members.sum(axis=0))[:, None]}  # [m, buckets] bool
        return self

    def score(self, queries: Sequence[Query]) -> Array:
        used = self.arrays["used"]
        found = (ngrams(query.text, self.buckets) for query in queries)
        return np.array([1 - used[:, grams].mean(axis=1) for grams in found]).reshape(len(queries), len(used))

    def checked(self, arrays: Mapping[str, Array], m: int) -> dict[str, Array]:
        return {"used": check_shape("used", arrays["used"], (m, self.buckets))}


class Probability:
    """1 - P(in the set): sigmoid heads over weighted n-grams, one a set against the rest. Needs scipy to fit.

    Each head may say no to everything, which a softmax over known sets cannot.
    """

    def __init__(self, buckets: int = 1 << 15, l2: float = 1e-4, steps: int = 60):
        self.buckets, self.l2, self.steps = buckets, l2, steps
        self.arrays: dict[str, Array] = {}

    def fit(self, queries: Sequence[Query], members: Array, rng: Rng) -> Self:
        from scipy.optimize import minimize

        rows = [np.unique(ngrams(query.text, self.buckets), return_counts=True) for query in queries]
        documents = np.bincount(np.concatenate([grams for grams, _ in rows]), minlength=self.buckets)
        self.arrays = {"rarity": (np.log((1 + len(queries)) / (1 + documents)) + 1).astype(np.float32)}
        x = self._matrix(rows)
        heads = [
            minimize(
                _balanced_loss, np.zeros(self.buckets + 1), (x, member, self.l2), jac=True, method="L-BFGS-B",
                options={"maxiter": self.steps},
            ).x
            for member in members.T
        ]  # fmt: skip
        self.arrays["heads"] = np.stack(heads, axis=1).astype(np.float32)  # [buckets + 1, m], the last row an offset
        return self

    def _weights(self, grams: Array, counts: Array) -> Array:
        """Of each distinct n-gram of one text, brought to length 1."""
        weights = (1 + np.log(counts)) * self.arrays["rarity"][grams]
        return weights / max(float(np.sqrt(weights @ weights)), 1e-9)

    def _matrix(self, rows: list[tuple[Array, Array]]) -> Any:
        from scipy.sparse import csr_matrix

        values = np.concatenate([self._weights(*row) for row in rows])
        ends = np.cumsum([0, *(len(grams) for grams, _ in rows)])
        return csr_matrix((values, np.concatenate([grams for grams, _ in rows]), ends), (len(rows), self.buckets))

    def score(self, queries: Sequence[Query]) -> Array:
        heads = self.arrays["heads"]
        out = np.empty((len(queries), heads.shape[1]))
        for row, query in zip(out, queries, strict=True):
            grams, counts = np.unique(ngrams(query.text, self.buckets), return_counts=True)
            row[:] = 1 - sigmoid(self._weights(grams, counts) @ heads[grams] + heads[-1])
        return out

    def checked(self, arrays: Mapping[str, Array], m: int) -> dict[str, Array]:
        rarity = check_shape("rarity", arrays["rarity"], (self.buckets,))
        return {"rarity": rarity, "heads": check_shape("heads", arrays["heads"], (self.buckets + 1, m))}


def _balanced_loss(weights: Array, x: Any, member: Array, l2: float) -> tuple[float, Array]:
    """Logistic loss and gradient [buckets + 1] of one set against the rest, both sides of equal weight."""
    share = float(np.clip(member.mean(), 1e-6, 1 - 1e-6))
    sign = np.where(member, 1.0, -1.0)
    scale = np.where(member, 0.5 / share, 0.5 / (1 - share)) / len(member)
    margin = -sign * (x @ weights[:-1] + weights[-1])
    slope = -sign * sigmoid(margin) * scale
    loss = float(scale @ np.logaddexp(0, margin)) + l2 / 2 * float(weights[:-1] @ weights[:-1])
    return loss, np.append(x.T @ slope + l2 * weights[:-1], slope.sum())


DETECTORS: Mapping[str, type[Any]] = {
    "distance": Distance, "spread": Spread, "coverage": Coverage, "probability": Probability,
}  # fmt: skip
