"""A table of means: one row a cluster of queries, one column a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.protocols import Router
from polyroute.routers.rows import PerPool, check_shape, embeddings, extend, nothing, observed, unit_rows
from polyroute.routers.shrink import Overall, overall, pick, shrunk
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query, Rng


class Cluster:
    """Estimate a metric as its mean over the query's cluster, shrunk to the candidate's overall mean.

    Clusters are k-means of the unit-length embeddings, so nearest is most similar. A cluster's mean counts as its
    outcomes plus kappa at the overall mean, or with a `prior` (fitted beforehand) at the prior's prediction, which
    also serves candidates never seen. `update` adds outcomes to the table; the centres stay.
    Source: Avengers (arXiv:2505.19797); k-means++ seeding, Arthur and Vassilvitskii 2007. The shrinkage is added here.
    """

    def __init__(
        self,
        num_clusters: int = 16,
        seed: int = 0,
        kappa: float = 10.0,
        metric: str = "quality",
        prior: Router | None = None,
    ):
        if num_clusters < 1:
            raise ConfigError("num_clusters", got=num_clusters, expected="a number of clusters, 1 or more")
        if not kappa >= 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations, 0 or more")
        self.num_clusters, self.kappa, self.metric, self.seed, self.prior = num_clusters, kappa, metric, seed, prior
        self.centres_: Array = None  # [c, d] float32 unit rows
        self._tables = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        some = observed(outcomes, self.metric)[1].any(axis=1)
        if not some.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to form a cluster, got none.")
        x = unit_rows(embeddings(outcomes.queries))[some]
        self.centres_ = kmeans(x, self.num_clusters, np.random.default_rng(self.seed))
        self.column_: dict[str, int] = {}
        self.table_ = np.zeros((len(self.centres_), 3, 0))  # sums a cluster: of y, of y squared, of what was seen
        self.update(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Add outcomes to the table. Candidates never met get a column of their own."""
        if self.centres_ is None:
            raise NotFittedError(self)
        y, seen = observed(outcomes, self.metric)
        cluster = self.assign(outcomes.queries)
        at = extend(self.column_, outcomes.pool)
        gained = len(self.column_) - self.table_.shape[2]
        self.table_ = np.pad(self.table_, ((0, 0), (0, 0), (0, gained)))
        rows = np.zeros((len(cluster), 3, len(self.column_)))
        rows[:, 0, at], rows[:, 1, at], rows[:, 2, at] = y, y**2, seen
        np.add.at(self.table_, cluster, rows)
        self._tables.clear()

    def assign(self, queries: Sequence[Query]) -> Array:
        """The cluster of each query, [n] int."""
        if self.centres_ is None:
            raise NotFittedError(self)
        x = unit_rows(embeddings(queries, self.centres_.shape[1]))
        index: Array = (x @ self.centres_.T).argmax(axis=1)
        return index

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Overall, Estimate]:
        """What is known of the pool overall, and the whole table [c, m] shrunk to that."""
        known = overall(self.table_.sum(axis=0), self.column_, pool, self.metric, prior=self.prior)
        return known, shrunk(*pick(self.table_, known.at), known.mean, known.variance, self.kappa)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.centres_ is None:
            raise NotFittedError(self)
        known, table = self._tables(pool)
        cluster = self.assign(queries)
        if not len(cluster) or not len(pool):
            return nothing(self.metric, len(cluster), len(pool))
        if self.prior is None:
            assert table.std is not None
            return {self.metric: Estimate(table.mean[cluster], table.std[cluster])}
        centre, doubt = self.prior.predict(queries, pool)[self.metric]
        sums = pick(self.table_[cluster], known.at)
        return {self.metric: shrunk(*sums, centre, known.variance, self.kappa, doubt)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.centres_ is None:
            raise NotFittedError(self)
        names = ("num_clusters", "kappa", "metric", "seed", "prior")
        params = {name: getattr(self, name) for name in names} | {"candidates": list(self.column_)}
        return params, {"centres": self.centres_, "table": self.table_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(candidates)}
        router.centres_ = check_shape("centres", np.asarray(arrays["centres"], np.float32), (None, None))
        table = np.asarray(arrays["table"], float)
        router.table_ = check_shape("table", table, (len(router.centres_), 3, len(candidates)))
        return router


def kmeans(x: Array, num_clusters: int, rng: Rng, *, steps: int = 100) -> Array:
    """Unit-length centres [c, d] of unit rows x [n, d], c at most `num_clusters` and at most the distinct rows.

    Seeds far apart (k-means++), then moves each centre to the mean direction of its rows until none changes.
    """
    centres = seeds(x, num_clusters, rng)
    cluster = np.full(len(x), -1)
    for _ in range(steps):
        nearest = (x @ centres.T).argmax(axis=1)
        if (nearest == cluster).all():
            break
        cluster = nearest
        member = cluster == np.arange(len(centres))[:, None]  # [c, n]
        filled = member.any(axis=1)
        centres[filled] = unit_rows(member[filled].astype(np.float32) @ x)
    return centres


def seeds(x: Array, num_clusters: int, rng: Rng) -> Array:
    """Rows of x chosen one after another with probability in proportion to the squared distance from those chosen."""
    chosen = [int(rng.integers(len(x)))]
    far = np.full(len(x), np.inf)
    while len(chosen) < num_clusters:
        far = np.minimum(far, 2.0 - 2.0 * (x @ x[chosen[-1]]))
        far[far < 1e-6] = 0.0
        if not far.any():
            break
        chosen.append(int(rng.choice(len(x), p=far / far.sum())))
    return x[chosen]
