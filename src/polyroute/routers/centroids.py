"""A candidate is where it succeeds: outcome-weighted centroids of the queries it answered, and a learned match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.incontext import Similarities, similarities
from polyroute.routers.rows import (
    PerPool,
    check_shape,
    columns,
    embeddings,
    extend,
    nothing,
    observed,
    unit_rows,
    within,
)
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query, Rng

NOISE = 0.2  # variance of one graded answer before any was seen
LANDMARKS = 256  # past queries whose likeness makes a query's features
LEVEL = 5.0  # pseudo-outcomes at no departure from what is expected of the query


class Centroids:
    """Estimate quality as what is expected of the query, plus the candidate's level, plus query . centroid.

    A centroid is one round of mean aggregation over a candidate's outcomes: the mean of its past queries weighted by
    how much better or worse than expected it did, over count + kappa. How strongly it counts is one number shared by
    all candidates, learned on outcomes whose own edges are hidden: in each of `masks` rounds a random part of a
    candidate's outcomes makes its centroid (between 32 of them and the share `visible`) and the others are to be
    foretold. So a newcomer's few outcomes are read as the known ones' few were; `update` adds edges and trains nothing.

    Source: GraphRouter (arXiv:2410.03834) reduced to what its graph adds over static vectors: mean aggregation, edges
    hidden in training, the query side not propagated. The match is a strength on scaled directions: a full matrix
    learned from eight models foretold newcomers worse than no centroid at all. Task nodes are left out.
    """

    def __init__(
        self,
        metric: str = "quality",
        rank: int = 64,
        kappa: float = 200.0,
        visible: float = 0.3,
        masks: int = 4,
        seed: int = 0,
    ):
        if rank < 1:
            raise ConfigError("rank", got=rank, expected="a number of directions, 1 or more")
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-outcomes above 0")
        if not 0 < visible < 1:
            raise ConfigError("visible", got=visible, expected="a share of a candidate's outcomes, between 0 and 1")
        if masks < 1:
            raise ConfigError("masks", got=masks, expected="a number of rounds, 1 or more")
        self.metric, self.rank, self.kappa = metric, rank, kappa
        self.visible, self.masks, self.seed = visible, masks, seed
        self.features_: Similarities | None = None
        self.sums_: Array  # [c, r + 3]: edges' weighted queries, their weights, their squares, their count
        self._nodes = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        some = seen.any(axis=1)
        if not some.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        x = unit_rows(embeddings(outcomes.queries))
        self.features_ = similarities(x[some], LANDMARKS, self.rank, np.random.default_rng(self.seed))
        scale = self.features_(x[some])[:, 1:].std(axis=0)
        self.scale_ = np.append(1.0, np.maximum(scale, 0.1 * scale.max(initial=0.0) + 1e-9) ** -0.5)  # [1 + r]
        phi = self._phi_of(x)
        self.expected_ = expected_head(phi, y, seen)  # [1 + r]
        edge = np.where(seen, y - (phi @ self.expected_)[:, None], 0.0)
        rng = np.random.default_rng(self.seed)
        self.strength_ = learned_strength(phi[:, 1:], edge, seen, self.visible, self.kappa, self.masks, rng)
        self.column_: dict[str, int] = {}
        self._add(outcomes.pool, phi, edge, seen)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Add edges: outcomes of known candidates or of new ones. What was learned of the match stays."""
        if self.features_ is None:
            raise NotFittedError(self)
        y, seen = observed(outcomes, self.metric)
        phi = self._phi_of(self._rows(outcomes.queries))
        self._add(outcomes.pool, phi, np.where(seen, y - (phi @ self.expected_)[:, None], 0.0), seen)

    def _add(self, pool: Sequence[Candidate], phi: Array, edge: Array, seen: Array) -> None:
        before = len(self.column_)
        at = extend(self.column_, pool)
        sums = np.zeros((len(self.column_), phi.shape[1] + 2))
        if before:
            sums[:before] = self.sums_
        new = np.column_stack([edge.T @ phi[:, 1:], edge.sum(axis=0), (edge**2).sum(axis=0), seen.sum(axis=0)])
        np.add.at(sums, at, new)
        self.sums_ = sums
        self._nodes.clear()

    def _rows(self, queries: Sequence[Query]) -> Array:
        assert self.features_ is not None
        return unit_rows(embeddings(queries, self.features_.marks.shape[1]))

    def _phi_of(self, x: Array) -> Array:
        assert self.features_ is not None
        phi: Array = self.features_(x) * self.scale_
        return phi

    def _work_out(self, pool: Sequence[Candidate]) -> _Nodes:
        at = columns({name: j for name, j in self.column_.items() if self.sums_[j, -1]}, pool)
        sums = self.sums_[at.index]
        count = sums[:, -1]
        level = sums[:, -3] / (count + LEVEL)
        weight = self.strength_ * (sums[:, :-3] / (count + self.kappa)[:, None]).T
        variance = (sums[:, -2] + 10 * NOISE) / (count + 10)
        return _Nodes(level, weight, np.sqrt(variance * (1 / (count + LEVEL) + 1 / (count + self.kappa))))

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.features_ is None:
            raise NotFittedError(self)
        nodes, phi = self._nodes(pool), self._phi_of(self._rows(queries))
        if not len(phi) or not len(pool):
            return nothing(self.metric, len(phi), len(pool))
        mean = within(self.metric, (phi @ self.expected_)[:, None] + nodes.level + phi[:, 1:] @ nodes.weight)
        return {self.metric: Estimate(mean, np.tile(nodes.doubt, (len(phi), 1)))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("metric", "rank", "kappa", "visible", "masks", "seed")
        params = {name: getattr(self, name) for name in names} | {"candidates": list(self.column_)}
        params["strength"] = self.strength_
        arrays = {name: getattr(self, name + "_") for name in ("scale", "expected", "sums")}
        return params, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        router = cls(**{name: value for name, value in params.items() if name not in ("candidates", "strength")})
        router.strength_ = float(params["strength"])
        router.column_ = {name: j for j, name in enumerate(candidates)}
        held = {name: np.asarray(array) for name, array in arrays.items()}
        marks = len(check_shape("marks", held["marks"], (None, None)))
        p = check_shape("onto", held["onto"], (marks, None)).shape[1]
        shapes: dict[str, tuple[int, ...]] = {"offset": (p,), "scale": (p,), "expected": (p,)}
        shapes |= {"sums": (len(candidates), p + 2)}
        for name, shape in shapes.items():
            check_shape(name, held[name], shape)
        router.features_ = Similarities(*(held[name] for name in Similarities._fields))
        router.scale_, router.expected_ = held["scale"], held["expected"]
        router.sums_ = held["sums"]
        return router


class _Nodes(NamedTuple):
    """What one pool needs."""

    level: Array  # [m]
    weight: Array  # [r, m]
    doubt: Array  # [m] std


def expected_head(phi: Array, y: Array, seen: Array) -> Array:
    """[1 + r] ridge head of the mean outcome of each query over the candidates that answered it."""
    count = seen.sum(axis=1)
    rows = count > 0
    weight, mean = count[rows], np.where(seen, y, 0.0).sum(axis=1)[rows] / count[rows]
    penalty = np.diag(np.append(1e-6, np.full(phi.shape[1] - 1, 20.0)))
    head: Array = np.linalg.solve((phi[rows].T * weight) @ phi[rows] + penalty, phi[rows].T @ (weight * mean))
    return head


def learned_strength(
    phi: Array, edge: Array, seen: Array, visible: float, kappa: float, masks: int, rng: Rng, least: int = 32
) -> float:
    """Regression of hidden edges on query . centroid of the visible ones: one number, 0 or more.

    phi: [n, r]. edge: [n, c] outcome less what is expected of the query, 0 where not seen.
    """
    square = product = 0.0
    for _ in range(masks):
        for j in range(edge.shape[1]):
            known = rng.permutation(np.flatnonzero(seen[:, j]))
            if len(known) < 2:
                continue
            most = max(visible * len(known), 1.0)
            shown = int(np.clip(np.exp(rng.uniform(np.log(min(least, most)), np.log(most))), 1, len(known) - 1))
            edges, hidden = known[:shown], known[shown:]
            level = edge[edges, j].sum() / (shown + LEVEL)
            told = phi[hidden] @ (edge[edges, j] @ phi[edges]) / (shown + kappa)
            square += float(told @ told)
            product += float(told @ (edge[hidden, j] - level))
    return max(product / (square + 1e-9), 0.0)
