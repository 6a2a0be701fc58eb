"""A candidate known only by a few graded answers: what others find hard, corrected by those answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.rows import PerPool, check_shape, embeddings, extend, nothing, observed, unit_rows, within
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query, Rng

WIDTH = 2.0  # of the kernel exp(-WIDTH |x - mark|^2)
CHUNK = 1024  # queries whose posteriors are worked out at once
NOISE = 0.2  # variance of one graded answer before any was seen
LEVEL, SLOPE, LEAN = 5.0, 1.0, 3.0  # penalties: on the level, on the sensitivity to difficulty, on each other's head


class InContext:
    """Estimate quality from a context of graded answers, one ridge solve a candidate, nothing trained for it.

    `fit` learns from its candidates what is hard: one ridge head each (l2), whose mean over the *other* candidates is
    the difficulty prior. A candidate's own outcomes are its context: a ridge on [1, the prior, how each other head
    departs from it, the embedding] explains what the prior leaves over, the last with penalty `ridge`. With no
    context the estimate is the prior itself. `update` adds to contexts and opens new ones; the others' heads stay,
    so a newcomer costs one small solve. All of it is linear in one set of features, similarities to `landmarks` past
    queries (seed: which) brought to `rank` directions: a prediction is two products.

    Source: V0, value at state zero; the in-context head of that system is a frozen transformer over a frozen
    encoder, here it is kernel ridge (Nystroem features) on recorded embeddings, solved exactly.
    """

    def __init__(
        self,
        metric: str = "quality",
        ridge: float = 2.0,
        l2: float = 0.3,
        landmarks: int = 256,
        rank: int = 128,
        seed: int = 0,
    ):
        for name, value in (("ridge", ridge), ("l2", l2)):
            if not value > 0:
                raise ConfigError(name, got=value, expected="a penalty above 0")
        for name, number in (("landmarks", landmarks), ("rank", rank)):
            if number < 1:
                raise ConfigError(name, got=number, expected="a number of 1 or more")
        self.metric, self.ridge, self.l2 = metric, ridge, l2
        self.landmarks, self.rank, self.seed = landmarks, rank, seed
        self.features_: Similarities | None = None
        self.gram_: Array  # [c, q, q] of each context, c candidates; with score_ and sums_ all that is kept of it
        self.score_: Array  # [c, q]
        self.sums_: Array  # [c, 2] how many answers, and their squared distance from the prior
        self.weight_: Array  # [c, p] the solved heads
        self.posterior_: Array  # [c, p, p]
        self._heads = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        some = seen.any(axis=1)
        if not some.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        x = unit_rows(embeddings(outcomes.queries))
        self.features_ = similarities(x[some], self.landmarks, self.rank, np.random.default_rng(self.seed))
        phi = self.features_(x)
        self.known_, left_out = known_heads(phi, y, seen, self.l2)  # [p, h], [n, h] without each row's own outcome
        self.trust_ = seen.sum(axis=0) / (seen.sum(axis=0) + 20.0)  # [h] a head of few outcomes says little
        self.column_: dict[str, int] = {}
        self._open(outcomes.pool)
        for j in range(len(outcomes.pool)):
            self._learn(j, phi[seen[:, j]], left_out[seen[:, j]], y[seen[:, j], j])
        self._solve(range(len(self.column_)))
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Add graded answers to contexts. A candidate never met gets a context of its own."""
        if self.features_ is None:
            raise NotFittedError(self)
        y, seen = observed(outcomes, self.metric)
        phi = self._phi(outcomes.queries)
        at = self._open(outcomes.pool)
        for i, j in enumerate(at):
            rows = seen[:, i]
            self._learn(j, phi[rows], phi[rows] @ self.known_, y[rows, i])
        self._solve(at)

    def _phi(self, queries: Sequence[Query]) -> Array:
        assert self.features_ is not None
        return self.features_(unit_rows(embeddings(queries, self.features_.marks.shape[1])))

    def _open(self, pool: Sequence[Candidate]) -> Array:
        """Columns of the pool [m]; those never met get an empty context."""
        before = len(self.column_)
        at = extend(self.column_, pool)
        c, p = len(self.column_), len(self.known_)
        q = 2 + self.known_.shape[1] + p - 1
        shapes = {"gram": (q, q), "score": (q,), "sums": (2,), "weight": (p,), "posterior": (p, p)}
        for name, shape in shapes.items():
            wider = np.zeros((c, *shape))
            wider[:before] = getattr(self, name + "_") if before else 0.0
            setattr(self, name + "_", wider)
        return at

    def _others(self, j: int) -> Array:
        """[h] weight of each known head in candidate j's difficulty prior; its own counts for nothing."""
        trust = self.trust_.copy()
        if j < len(trust):
            trust[j] = 0.0
        total = trust.sum()
        return trust / total if total > 0 else trust

    def _context(self, j: int, phi: Array, told: Array) -> tuple[Array, Array]:
        """The prior [n] and the features [n, q] of candidate j's head. told: [n, h] what the known heads say."""
        share = self._others(j)
        prior = told @ share
        departs = (told - prior[:, None]) * (share > 0)
        return prior, np.hstack([np.ones((len(phi), 1)), prior[:, None], departs, phi[:, 1:]])

    def _learn(self, j: int, phi: Array, told: Array, y: Array) -> None:
        prior, psi = self._context(j, phi, told)
        left = y - prior
        self.gram_[j] += psi.T @ psi
        self.score_[j] += psi.T @ left
        self.sums_[j] += len(y), (left**2).sum()

    def _penalty(self) -> Array:
        h = self.known_.shape[1]
        return np.concatenate([[LEVEL, SLOPE], np.full(h, LEAN), np.full(len(self.known_) - 1, self.ridge)])

    def _solve(self, columns: Sequence[int] | Array) -> None:
        """Weights and posteriors of some candidates on the features phi, from their contexts."""
        p = len(self.known_)
        penalty = np.diag(self._penalty())
        for j in columns:
            inverse = np.linalg.inv(self.gram_[j] + penalty)
            weight = inverse @ self.score_[j]
            prior, onto = self._context(j, np.eye(p), self.known_)  # everything is linear in phi: [p], [p, q]
            onto[:, 0] = np.eye(p)[0]
            self.weight_[j] = prior + onto @ weight
            count, square = self.sums_[j]
            fitted = weight @ self.score_[j]
            noise = (max(square - fitted, 0.0) + 10 * NOISE) / (count + 10)
            self.posterior_[j] = noise * onto @ inverse @ onto.T
        self._heads.clear()

    def _work_out(self, pool: Sequence[Candidate]) -> _Heads:
        """Weights [p, m] and posteriors [m, p, p] of a pool; a candidate never seen has an empty context."""
        p, at = len(self.known_), [self.column_.get(candidate.id, -1) for candidate in pool]
        weight, posterior = np.empty((p, len(at))), np.empty((len(at), p, p), np.float32)
        for i, j in enumerate(at):
            if j >= 0:
                weight[:, i], posterior[i] = self.weight_[j], self.posterior_[j]
            else:
                prior, onto = self._context(len(self.column_), np.eye(p), self.known_)
                onto[:, 0] = np.eye(p)[0]
                weight[:, i], posterior[i] = prior, NOISE * (onto / self._penalty()) @ onto.T
        return _Heads(weight, posterior)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.features_ is None:
            raise NotFittedError(self)
        heads, phi = self._heads(pool), self._phi(queries)
        if not len(phi) or not len(pool):
            return nothing(self.metric, len(phi), len(pool))
        parts = [phi[start : start + CHUNK] for start in range(0, len(phi), CHUNK)]
        variance = np.concatenate([np.vecdot(part @ heads.posterior, part).T for part in parts])  # [n, m]
        mean = within(self.metric, phi @ heads.weight)
        return {self.metric: Estimate(mean, np.sqrt(np.maximum(variance, 0.0)))}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        params = {name: getattr(self, name) for name in ("metric", "ridge", "l2", "landmarks", "rank", "seed")}
        names = ("known", "trust", "gram", "score", "sums", "weight", "posterior")
        arrays = {name: getattr(self, name + "_") for name in names}
        return params | {"candidates": list(self.column_)}, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(candidates)}
        held = {name: np.asarray(array) for name, array in arrays.items()}
        marks = len(check_shape("marks", held["marks"], (None, None)))
        p = check_shape("onto", held["onto"], (marks, None)).shape[1]
        h, c = check_shape("known", held["known"], (p, None)).shape[1], len(candidates)
        q = 2 + h + p - 1
        shapes: dict[str, tuple[int, ...]] = {"offset": (p,), "trust": (h,), "gram": (c, q, q), "score": (c, q)}
        shapes |= {"sums": (c, 2), "weight": (c, p), "posterior": (c, p, p)}
        for name, shape in shapes.items():
            check_shape(name, held[name], shape)
        router.features_ = Similarities(*(held[name] for name in Similarities._fields))
        router.known_, router.trust_, router.gram_ = held["known"], held["trust"], held["gram"]
        router.score_, router.sums_ = held["score"], held["sums"]
        router.weight_, router.posterior_ = held["weight"], held["posterior"]
        return router


class Similarities(NamedTuple):
    """From unit embeddings to features: likeness to landmarks, turned to the directions that matter, a 1 first."""

    marks: Array  # [l, d] float32 unit rows
    onto: Array  # [l, p]; its first column is 0
    offset: Array  # [p]; its first entry is 1

    def __call__(self, x: Array) -> Array:
        """Features [n, p] float64. x: [n, d] unit rows."""
        phi: Array = likeness(x, self.marks) @ self.onto + self.offset
        return phi


def likeness(x: Array, marks: Array) -> Array:
    """[n, l] float64, exp(-2 |x - mark|^2) for unit rows: 1 for the same text, 0.02 for one that shares nothing."""
    alike: Array = np.exp(np.minimum(WIDTH * 2 * (x @ marks.T - 1.0), 0.0), dtype=float)
    return alike


def similarities(x: Array, landmarks: int, rank: int, rng: Rng) -> Similarities:
    """Nystroem features of unit rows x [n, d]: `landmarks` of them, `rank` directions, centred.

    Source: Williams and Seeger 2001, Using the Nystroem method to speed up kernel machines.
    """
    marks = np.ascontiguousarray(x[np.sort(rng.permutation(len(x))[:landmarks])], np.float32)
    value, direction = np.linalg.eigh(likeness(marks, marks))
    keep = np.flatnonzero(value > 1e-6 * value[-1])[::-1][:rank]
    onto = np.hstack([np.zeros((len(marks), 1)), direction[:, keep] / np.sqrt(value[keep])])
    offset = -(likeness(x, marks) @ onto).mean(axis=0)
    offset[0] = 1.0
    return Similarities(marks, onto, offset)


class _Heads(NamedTuple):
    """What one pool needs."""

    weight: Array  # [p, m]
    posterior: Array  # [m, p, p] float32


def known_heads(phi: Array, y: Array, seen: Array, l2: float) -> tuple[Array, Array]:
    """One ridge head a candidate, and what it says of each row without that row's own outcome.

    phi: [n, p], the first column 1. y, seen: [n, m]. Returns weights [p, m] and predictions [n, m]; where a row was
    not seen the prediction is the head's, where it was it is the exact leave-one-out one. A head is drawn to the
    candidate's mean as a penalty of l2 on every weight but the constant's says.
    """
    penalty = np.diag(np.concatenate([[1e-6], np.full(phi.shape[1] - 1, l2)]))
    weight, told = np.zeros((phi.shape[1], y.shape[1])), np.zeros(y.shape)
    for j in range(y.shape[1]):
        rows = phi[seen[:, j]]
        inverse = np.linalg.inv(rows.T @ rows + penalty)
        weight[:, j] = inverse @ (rows.T @ y[seen[:, j], j])
        told[:, j] = phi @ weight[:, j]
        leverage = np.minimum(np.vecdot(rows @ inverse, rows), 0.99)
        told[seen[:, j], j] = (told[seen[:, j], j] - leverage * y[seen[:, j], j]) / (1 - leverage)
    return weight, told
