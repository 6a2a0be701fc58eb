"""A choice trained on rewards: a softmax over candidates, linear in the query, and the gradient steps that move it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.heads import Features, features
from polyroute.routers.irt import softmax
from polyroute.routers.rows import check_shape, columns, embeddings, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

METRIC = "preference"  # log-odds; drawn from as they are by policies.explore.Softmax(temperature=1)


class SoftmaxPolicy:
    """Log-odds of choosing each candidate, trained on what choices earned and not on how candidates score.

    Estimates `preference`, in logits above the least preferred candidate known; `Objective({"preference": 1})` with
    `policies.explore.Softmax(1.0)` draws as trained, with `Greedy` it takes the likeliest. `fit` climbs the expected
    reward sum_m P(m|x) reward[m] exactly, from a table where several candidates were tried on each query (forced
    rollouts); a cell not observed neither draws nor repels. Training on one sampled choice a time, with clipped steps
    over groups, is `offline.policy_gradient`. entropy: reward given for staying undecided; l2: pull to the uniform
    choice. The std is that of a Laplace approximation, each candidate for itself: rough.
    Source: REINFORCE (Williams 1992) in expectation; features as in `routers/linear.py`.
    """

    def __init__(
        self,
        metric: str = "quality",
        *,
        rank: int | None = 64,
        l2: float = 1e-4,
        entropy: float = 0.01,
        rate: float = 0.05,
        steps: int = 300,
    ):
        if not (l2 >= 0 and entropy >= 0 and rate > 0 and steps >= 0):
            raise ConfigError("l2, entropy, rate, steps", got=(l2, entropy, rate, steps), expected="no negative number")
        self.metric, self.rank, self.l2, self.entropy, self.rate, self.steps = metric, rank, l2, entropy, rate, steps
        self.features_: Features | None = None

    def start(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Self:
        """Features of these queries and the uniform choice among `pool`, before any reward was seen."""
        if not queries or not pool:
            raise OutcomesError(f"expected queries and candidates to start from, got {len(queries)} and {len(pool)}.")
        x = unit_rows(embeddings(queries))
        rank = self.rank if self.rank is not None and len(x) >= 2 * self.rank else None
        self.features_ = features(x, rank, None)
        self.column_ = {c.id: j for j, c in enumerate(pool)}
        p, m = self.features_.directions.shape[1], len(pool)
        self.weight_ = np.zeros((p, m))
        self.posterior_ = np.broadcast_to(np.eye(p) * 4.0, (m, p, p)).astype(np.float32)
        self.climb_ = Climb.start((p, m))
        return self

    def fit(self, outcomes: Outcomes) -> Self:
        """Climb the expected reward of the table. Raises: OutcomesError if it lacks the metric or any outcome."""
        y, seen = observed(outcomes, self.metric)
        x_known, tried = seen.any(axis=1), seen.any(axis=0)
        embeddings(outcomes.queries)  # complains about any, also of a query nobody answered
        if not x_known.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        self.start([q for q, known in zip(outcomes.queries, x_known, strict=True) if known],
                   [c for c, known in zip(outcomes.pool, tried, strict=True) if known])  # fmt: skip
        y, seen = y[np.ix_(x_known, tried)], seen[np.ix_(x_known, tried)]
        phi = self.phi(outcomes.queries)[x_known]
        for _ in range(self.steps):
            odds = softmax(np.where(seen, phi @ self.weight_, -np.inf))
            gain = y + self.entropy * -np.log(np.maximum(odds, 1e-12))
            push = odds * (gain - (odds * gain).sum(axis=1, keepdims=True))
            self.step(phi.T @ push / len(phi))
        return self.settle(phi)

    def step(self, slope: Array) -> None:
        """One step uphill. slope: [p, m] gradient of the mean reward by the weights."""
        self.weight_, self.climb_ = self.climb_.step(self.weight_, slope - self.l2 * self.weight_, self.rate)

    def settle(self, phi: Array) -> Self:
        """Work out the doubt from the queries trained on, phi [n, p]."""
        odds = softmax(phi @ self.weight_)
        bend = np.maximum(odds * (1 - odds), 1e-3)
        held = np.eye(phi.shape[1]) * 0.25
        self.posterior_ = np.stack([np.linalg.inv((phi * row[:, None]).T @ phi + held) for row in bend.T])
        self.posterior_ = self.posterior_.astype(np.float32)
        return self

    def phi(self, queries: Sequence[Query]) -> Array:
        """Features [n, p] of queries, float64."""
        if self.features_ is None:
            raise NotFittedError(self)
        return self.features_(unit_rows(embeddings(queries, len(self.features_.directions))), None).astype(float)

    def odds(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        """[n, m] probability of each choice, rows summing to 1."""
        phi = self.phi(queries)
        found: Array = softmax(phi @ self.weight_[:, columns(self.column_, pool).index])
        return found

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        phi = self.phi(queries)
        at = columns(self.column_, pool).index
        if not len(phi) or not len(pool):
            return nothing(METRIC, len(phi), len(pool))
        logit = phi @ self.weight_
        std = np.sqrt(np.stack([np.vecdot(phi @ self.posterior_[j], phi) for j in at], axis=1))
        return {METRIC: Estimate((logit - logit.min(axis=1, keepdims=True))[:, at], std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("metric", "rank", "l2", "entropy", "rate", "steps")
        params = {name: getattr(self, name) for name in names} | {"candidates": list(self.column_)}
        return params, {"weight": self.weight_, "posterior": self.posterior_} | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        policy = cls(**{name: value for name, value in params.items() if name != "candidates"})
        held = {name: np.asarray(array) for name, array in arrays.items()}
        p, m = check_shape("directions", held["directions"], (None, None)).shape[1], len(candidates)
        shapes = {"offset": (p,), "tokens": (2,), "weight": (p, m), "posterior": (m, p, p)}
        for name, shape in shapes.items():
            check_shape(name, held[name], shape)
        policy.features_ = Features(*(held[name] for name in Features._fields))
        policy.column_ = {name: j for j, name in enumerate(candidates)}
        policy.weight_, policy.posterior_ = held["weight"], held["posterior"]
        policy.climb_ = Climb.start((p, m))
        return policy


class Climb(NamedTuple):
    """Running moments of the gradient, so that a rate fits every weight (Adam, arXiv:1412.6980)."""

    mean: Array
    square: Array
    taken: int

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> Climb:
        return cls(np.zeros(shape), np.zeros(shape), 0)

    def step(self, weight: Array, slope: Array, rate: float) -> tuple[Array, Climb]:
        """The weights one step uphill, and the moments after it."""
        mean, square = 0.9 * self.mean + 0.1 * slope, 0.999 * self.square + 0.001 * slope**2
        taken = self.taken + 1
        move = mean / (1 - 0.9**taken) / (np.sqrt(square / (1 - 0.999**taken)) + 1e-8)
        return weight + rate * move, Climb(mean, square, taken)
