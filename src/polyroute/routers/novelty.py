"""How foreign a query is to what each candidate does well: 1 is the edge, found without any foreign example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownNameError
from polyroute.routers.detectors import DETECTORS
from polyroute.routers.rows import check_shape, columns, nothing, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

FOLDS = 5  # one of them sets the scales and thresholds
LEAST = 8  # queries held out for a candidate; with fewer its own training queries set its threshold
FARTHEST = 20.0  # widths beyond the edge at which scores stop growing


class Novelty:
    """Estimate `novelty` [n, m]: below 1 a query is like those the candidate does well, above 1 it is foreign to it.

    A candidate's own queries are those it scored `good` or more on; where there is none, all it was asked. One fifth of
    the groups is held out from the detectors and sets their scales: each score is centred at the median of the
    candidate's own held-out queries and divided by the way from there to their 95th percentile. The mean over detectors
    has its edge where a share `reject` of the held-out queries lies beyond; novelty is exp(mean - edge). So the share
    of own queries that is turned away is the only thing to choose, and no foreign query is ever needed.
    The std is novelty / sqrt(held-out queries), a rough measure of how well the edge is known.

    detectors: names of `detectors.DETECTORS`. distance and spread read embeddings; coverage and probability read text,
    and need no featuriser at all. Every detector has as many scores as candidates, so the price grows with the pool.
    Source: guarded query routing, GQR-Bench (arXiv:2505.14524), which thresholds the largest class probability;
    distance and spread and the held-out edge per candidate are added here.
    """

    def __init__(
        self, detectors: Sequence[str] = ("distance", "spread"), reject: float = 0.05, *, metric: str = "quality",
        good: float = 0.5, seed: int = 0,
    ):  # fmt: skip
        for name in detectors:
            if name not in DETECTORS:
                raise UnknownNameError("detector", name, DETECTORS)
        if not detectors:
            raise ConfigError("detectors", got=(), expected=f"one or more of {', '.join(DETECTORS)}")
        if not 0 < reject < 1:
            raise ConfigError("reject", got=reject, expected="a share of own queries above 0 and below 1")
        self.detectors, self.reject, self.metric, self.good, self.seed = tuple(detectors), reject, metric, good, seed
        self.parts_: list[Any] | None = None  # None: not fitted

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        known = np.flatnonzero(seen.any(axis=0))
        if not len(known):
            raise OutcomesError(
                f"expected outcomes of at least 1 candidate to know what is its own, got {len(y)} rows."
            )
        y, seen = y[:, known], seen[:, known]
        own = seen & (y >= self.good)
        own = np.where(own.any(axis=0), own, seen)
        rng = np.random.default_rng(self.seed)
        held = self._held_out(outcomes)
        learn = own & ~held[:, None]
        learn = np.where(learn.any(axis=0), learn, own)
        rows = np.flatnonzero(learn.any(axis=1))
        queries = [outcomes.queries[int(i)] for i in rows]
        self.parts_ = [DETECTORS[name]().fit(queries, learn[rows], rng) for name in self.detectors]
        self.column_ = {outcomes.pool[int(j)].id: k for k, j in enumerate(known)}
        calibrate = own & held[:, None]
        calibrate = np.where(calibrate.sum(axis=0) >= LEAST, calibrate, own)
        self._set_edges([part.score(outcomes.queries) for part in self.parts_], calibrate)
        return self

    def _held_out(self, outcomes: Outcomes) -> Array:
        """[n] bool: a fifth of the groups, by a hash of their name."""
        ids = [query.id for query in outcomes.queries]
        groups = [g or i for g, i in zip(outcomes.labels.get("group", ids), ids, strict=True)]
        digests = (hashlib.blake2b(f"{self.seed}:{group}".encode(), digest_size=4).digest() for group in groups)
        return np.array([int.from_bytes(digest, "little") % FOLDS == 0 for digest in digests], dtype=bool)

    def _set_edges(self, scores: Sequence[Array], own: Array) -> None:
        """Scale each detector and set the edges. scores: [n, m] a detector. own: [n, m] bool."""
        m = own.shape[1]
        middle, width, ranked = np.zeros((len(scores), m)), np.ones((len(scores), m)), []
        for j in range(m):
            rows = np.flatnonzero(own[:, j])
            standard = np.zeros(len(rows))
            for d, score in enumerate(scores):
                values = score[rows, j]
                middle[d, j] = np.median(values)
                width[d, j] = max(np.quantile(values, 0.95) - middle[d, j], 1e-3 * abs(middle[d, j]), 1e-6)
                standard += (values - middle[d, j]) / width[d, j] / len(scores)
            ranked.append(np.sort(standard))
        self.middle_, self.width_, self.ranked_ = middle, width, np.concatenate(ranked)
        self.count_ = own.sum(axis=0)
        self.edge_ = edges(self.ranked_, self.count_, self.reject)

    def at(self, reject: float) -> Self:
        """The same router with its edges where another share of own queries lies beyond; nothing is fitted again."""
        if self.parts_ is None:
            raise NotFittedError(self)
        moved = type(self)(self.detectors, reject, metric=self.metric, good=self.good, seed=self.seed)
        moved.__dict__.update({name: held for name, held in vars(self).items() if name.endswith("_")})
        moved.edge_ = edges(self.ranked_, self.count_, reject)
        return moved

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.parts_ is None:
            raise NotFittedError(self)
        at = columns(self.column_, pool).index
        if not queries or not pool:
            return nothing("novelty", len(queries), len(pool))
        standard = np.zeros((len(queries), len(self.column_)))
        for part, middle, width in zip(self.parts_, self.middle_, self.width_, strict=True):
            standard += (part.score(queries) - middle) / width / len(self.parts_)
        novelty = np.exp(np.clip(standard - self.edge_, -FARTHEST, FARTHEST))[:, at]
        return {"novelty": Estimate(novelty, novelty / np.sqrt(self.count_[at]))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.parts_ is None:
            raise NotFittedError(self)
        params = {name: getattr(self, name) for name in ("reject", "metric", "good", "seed")}
        arrays = {name: getattr(self, name + "_") for name in ("middle", "width", "ranked", "count")}
        for name, part in zip(self.detectors, self.parts_, strict=True):
            arrays |= {f"{name}_{key}": array for key, array in part.arrays.items()}
        return params | {"detectors": list(self.detectors), "candidates": list(self.column_)}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        m, d = len(router.column_), len(router.detectors)
        for name, shape in {"middle": (d, m), "width": (d, m), "ranked": (None,), "count": (m,)}.items():
            setattr(router, name + "_", check_shape(name, np.asarray(arrays[name]), shape))
        check_shape("ranked", router.ranked_, (int(router.count_.sum()),))
        router.edge_ = edges(router.ranked_, router.count_, router.reject)
        router.parts_ = []
        for name in router.detectors:
            part = DETECTORS[name]()
            own = {
                key.removeprefix(f"{name}_"): np.asarray(a) for key, a in arrays.items() if key.startswith(f"{name}_")
            }
            part.arrays = part.checked(own, m)
            router.parts_.append(part)
        return router


def edges(ranked: Array, count: Array, reject: float) -> Array:
    """[m] the score of each candidate beyond which it expects at most a share `reject` of its own queries (conformal).

    ranked: every candidate's own scores, sorted, one candidate after the other. count: [m] how many it has.
    """
    ends = np.cumsum(count)
    rank = np.minimum(np.ceil((count + 1) * (1 - reject)).astype(np.int64), count)
    return np.asarray(ranked[ends - count + rank - 1])
