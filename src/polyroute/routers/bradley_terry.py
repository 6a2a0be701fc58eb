"""Ratings from who beat whom: Bradley-Terry weighted by how alike the queries are, and Elo kept up to date.

Letters: n past queries, q queries asked about, m candidates. A rating is a logit: a candidate rated r above another
wins with probability sigmoid(r). Only decided pairs count; of two right or two wrong answers nothing is learned about
which is better. Where outcomes follow a Rasch model, P(right) = sigmoid(ability - difficulty), the ratings of decided
pairs are the abilities exactly (Rasch's conditional likelihood), so one level per query turns them into qualities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError
from polyroute.protocols import Router
from polyroute.routers.heads import sigmoid
from polyroute.routers.rows import PerPool, check_shape, columns, embeddings, extend, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

ELO_SCALE = 400.0 / np.log(10.0)  # Elo points of one logit
CHUNK = 2_000_000  # similarities held at once
KEPT = 2**25  # entries of the table of wins, 128 MB; a larger one is made anew, a part at a time


class BradleyTerry:
    """Estimate quality from pairwise wins on similar past queries.

    The wins of each past query weigh `sharpness ** (similarity / greatest similarity)`; ratings are those most likely
    under the weighted wins and `kappa` more games of each candidate that came out as the ratings of all queries say.
    Weighted mean quality over the pool sets the level; since queries differ in difficulty, rates of success lie closer
    together than ratings do, by a factor taken from the overall rates. A table of preferences is one with two
    candidates observed a row and qualities 1 and 0 (0.5 each: a tie, which decides nothing).
    Source: similarity-weighted ranking of RouteLLM, Ong et al. 2024 (arXiv:2406.18665), whose sharpness is 10 and which
    counts ties as half a win each; the shrinkage and the level are added here. With a `prior` (fitted beforehand)
    candidates never seen are served from it.
    """

    def __init__(self, sharpness: float = 1e3, kappa: float = 5.0, prior: Router | None = None):
        if not sharpness >= 1:
            raise ConfigError("sharpness", got=sharpness, expected="a number of 1 or more; 1 counts all queries alike")
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-games above 0")
        self.sharpness, self.kappa, self.prior = sharpness, kappa, prior
        self.size_: int | None = None  # n past queries; None: not fitted

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, "quality")
        some = seen.any(axis=1)
        self.x_ = unit_rows(embeddings(outcomes.queries))[some]  # [n, d] float32
        self.size_ = len(self.x_)
        names = [c.id for c, has in zip(outcomes.pool, seen.any(axis=0), strict=True) if has]
        self.column_ = {name: j for j, name in enumerate(names)}
        kept = seen.any(axis=0)
        self.y_, self.seen_ = y[some][:, kept].astype(np.float32), seen[some][:, kept]
        self._start()
        return self

    def _start(self) -> None:
        """What follows from the past outcomes: wins of each query, and the ratings of all together."""
        n, m = self.y_.shape
        self._kept: Array | None = None  # [n, m * m] float32, where that is not too much to keep
        if n * m * m <= KEPT:
            self._kept = wins_of(self.y_, self.seen_).reshape(n, m * m)
        everyone = self._weighed_wins(np.ones((1, n), np.float32))
        self.rating_ = ratings(everyone, np.zeros((1, m)), np.full((m, m), 1.0))[0]  # [m]
        self._sums = np.concatenate([np.where(self.seen_, self.y_, 0), self.seen_], axis=1).astype(np.float32)
        total, count = self._sums.sum(axis=0, dtype=float).reshape(2, m)
        self.middle_ = (total.sum() + 0.5) / (count.sum() + 1.0)  # mean quality of all
        self.spread_ = spread_of(self.rating_, (total + self.middle_) / (count + 1.0), count + 1e-9)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.size_ is None:
            raise NotFittedError(self)
        at = columns(self.column_, pool, prior=self.prior)
        x = unit_rows(embeddings(queries, self.x_.shape[1] or None))
        if not len(x) or not len(pool):
            return nothing("quality", len(x), len(pool))
        m = len(self.column_)
        mean, std = np.full((len(x), m), 0.5), np.full((len(x), m), 0.5)
        step = max(1, CHUNK // max(self.size_, m * m, 1))
        for start in range(0, len(x) if m else 0, step):
            mean[start : start + step], std[start : start + step] = self._estimate(x[start : start + step])
        if at.unseen is None:
            return {"quality": Estimate(mean[:, at.index], std[:, at.index])}
        assert self.prior is not None  # columns() has seen to it
        before = self.prior.predict(queries, pool)["quality"]
        doubt = np.full_like(before.mean, 0.5) if before.std is None else before.std
        if not m:
            return {"quality": Estimate(before.mean, doubt)}
        known = ~at.unseen
        pairs = ((mean[:, at.index], before.mean), (std[:, at.index], doubt))
        return {"quality": Estimate(*(np.where(known, own, prior) for own, prior in pairs))}

    def _estimate(self, x: Array) -> tuple[Array, Array]:
        """Mean and std [q, m] for all candidates seen."""
        m = len(self.column_)
        alike = x @ self.x_.T  # [q, n]
        weight = self.sharpness ** (alike / np.maximum(alike.max(axis=1, keepdims=True), 1e-6) - 1.0)
        wins = self._weighed_wins(weight)
        rating = ratings(wins, np.repeat(self.rating_[None], len(x), axis=0), np.full((m, m), self.kappa / m))
        sums = (weight @ self._sums).astype(float)  # [q, 2 m]
        total, count = sums[:, :m], sums[:, m:] + 1e-9
        middle = (total.sum(axis=1) + self.middle_) / (count.sum(axis=1) + 1.0)
        mean = level(self.spread_ * rating, middle, count / count.sum(axis=1, keepdims=True))
        return mean, np.sqrt(mean * (1 - mean) / (count + 1)) + 1e-3

    def _weighed_wins(self, weight: Array) -> Array:
        """Wins [q, m, m] over all past queries. weight: [q, n]."""
        n, m = self.y_.shape
        if self._kept is not None:
            return (weight @ self._kept).reshape(-1, m, m).astype(float)
        total, step = np.zeros((len(weight), m * m)), max(1, KEPT // (m * m))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            total += weight[:, rows] @ wins_of(self.y_[rows], self.seen_[rows]).reshape(-1, m * m)
        return total.reshape(-1, m, m)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.size_ is None:
            raise NotFittedError(self)
        params = {"sharpness": self.sharpness, "kappa": self.kappa, "prior": self.prior}
        return params | {"candidates": list(self.column_)}, {"x": self.x_, "y": self.y_, "seen": self.seen_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["sharpness"], params["kappa"], params["prior"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        router.x_ = check_shape("x", np.asarray(arrays["x"], np.float32), (None, None))
        shape = (len(router.x_), len(router.column_))
        router.y_ = check_shape("y", np.asarray(arrays["y"], np.float32), shape)
        router.seen_ = check_shape("seen", np.asarray(arrays["seen"], bool), shape)
        router.size_ = len(router.x_)
        router._start()
        return router


class Elo:
    """Estimate quality from ratings that move a step after each decided pair, whatever the query.

    Each pair of outcomes with different quality moves both ratings by `step * (won - expected)` Elo points; 400 points
    are odds of ten to one. An update costs microseconds and never looks back, so ratings follow models that change.
    Ties count as half a win each. The mean quality seen sets the level; before any outcome it is 0.5.
    Source: Elo 1978; as a selection rule in the vLLM Semantic Router.
    """

    def __init__(self, step: float = 16.0):
        if not step > 0:
            raise ConfigError("step", got=step, expected="a number of Elo points above 0")
        self.step = step
        self._qualities = PerPool(self._work_out)
        self._forget()

    def _forget(self) -> None:
        self.column_: dict[str, int] = {}
        self.rating_, self.games_ = np.zeros(0), np.zeros(0)  # [m] logits; [m] outcomes seen
        self.seen_ = np.zeros(2)  # sum of qualities, and how many
        self._qualities.clear()

    def fit(self, outcomes: Outcomes) -> Self:
        self._forget()
        self.update(outcomes)
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Take in outcomes, oldest first."""
        y, seen = observed(outcomes, "quality")
        at = extend(self.column_, outcomes.pool)
        gained = len(self.column_) - len(self.rating_)
        self.rating_, self.games_ = np.pad(self.rating_, (0, gained)), np.pad(self.games_, (0, gained))
        step = self.step / ELO_SCALE
        for row, known in zip(y, seen, strict=True):
            there, score = at[known], row[known]
            if len(there) > 1:
                won = 0.5 + 0.5 * np.sign(score[:, None] - score[None, :])
                ahead = self.rating_[there][:, None] - self.rating_[there][None, :]
                surprise = won - sigmoid(ahead)  # 0 on the diagonal
                self.rating_[there] += step * surprise.sum(axis=1) / (len(there) - 1)
            self.games_[there] += 1
            self.seen_ = self.seen_ + np.array([score.sum(), len(there)])
        self._qualities.clear()

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        return {"quality": Estimate(*(np.repeat(row[None], len(queries), axis=0) for row in self._qualities(pool)))}

    def _work_out(self, pool: Sequence[Candidate]) -> tuple[Array, Array]:
        """Mean and std, each [m]."""
        at = [self.column_.get(candidate.id, -1) for candidate in pool]
        rating, games = (np.append(column, 0.0)[at] for column in (self.rating_, self.games_))  # 0: never seen
        everyone = np.append(self.rating_[self.games_ > 0], [] if self.games_.any() else [0.0])
        middle = (self.seen_[0] + 0.5) / (self.seen_[1] + 1.0)
        offset = offset_of(everyone[None], np.array([middle]), np.full((1, len(everyone)), 1 / len(everyone)))
        mean = sigmoid(rating - offset[0])
        return mean, np.sqrt(mean * (1 - mean) / (games + 1.0)) + 1e-3

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        arrays = {"rating": self.rating_, "games": self.games_, "seen": self.seen_}
        return {"step": self.step, "candidates": list(self.column_)}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(params["step"])
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        for name, size in (("rating", len(router.column_)), ("games", len(router.column_)), ("seen", 2)):
            setattr(router, f"{name}_", check_shape(name, np.asarray(arrays[name], float), (size,)))
        return router


def wins_of(y: Array, seen: Array) -> Array:
    """[n, m, m] float32, 1 where the row's first candidate beat the second. y, seen: [n, m]."""
    both = seen[:, :, None] & seen[:, None, :]
    return (both & (y[:, :, None] > y[:, None, :])).astype(np.float32)


def ratings(wins: Array, start: Array, games: Array, steps: int = 8) -> Array:
    """Most likely ratings [q, m] under wins [q, m, m] (row beat column) and pseudo-games [m, m] at the ratings `start`.

    start: [q, m] logits, where the pseudo-games were drawn at and what ratings are shrunk to; their mean is kept.
    Newton's method on a concave likelihood. Source: Bradley and Terry 1952.
    """
    m = wins.shape[1]
    before = sigmoid(start[:, :, None] - start[:, None, :])
    games = games * (1 - np.eye(m))
    won = wins + games * before
    played = wins + wins.swapaxes(1, 2) + games * (before + before.swapaxes(1, 2))
    rating = np.array(start, dtype=float)
    flat = np.full((m, m), 1.0 / m)  # the common level is free: it is held by this
    for _ in range(steps):
        p = sigmoid(rating[:, :, None] - rating[:, None, :])
        gradient = (won - played * p).sum(axis=2)  # [q, m]
        curve = played * p * (1 - p)
        hessian = np.eye(m) * curve.sum(axis=2)[:, :, None] - curve + flat
        move = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        rating += np.clip(move, -2.0, 2.0)
        if np.abs(move).max(initial=0.0) < 1e-8:
            break
    return rating


def level(rating: Array, middle: Array, share: Array) -> Array:
    """Qualities [q, m] = sigmoid(rating - offset), where their mean by `share` [q, m] is `middle` [q]."""
    return sigmoid(rating - offset_of(rating, middle, share)[:, None])


def spread_of(rating: Array, rate: Array, count: Array) -> float:
    """The factor on ratings [m] at which `level` comes nearest to rates of success [m], each weighing `count` [m]."""
    if not len(rating):
        return 1.0
    share = (count / count.sum())[None]
    middle = np.array([(share[0] * rate).sum()])
    factors = np.linspace(1.2, 0.2, 51)
    missed = [(share * (level(f * rating[None], middle, share) - rate) ** 2).sum() for f in factors]
    return float(factors[int(np.argmin(missed))])


def offset_of(rating: Array, middle: Array, share: Array, steps: int = 40) -> Array:
    """[q] by bisection, which cannot fail; middle: [q] in 0..1, kept off the ends by a thousandth."""
    target = np.clip(middle, 1e-3, 1 - 1e-3)
    low, high = rating.min(axis=1) - 8.0, rating.max(axis=1) + 8.0
    for _ in range(steps):
        half = (low + high) / 2
        above = (share * sigmoid(rating - half[:, None])).sum(axis=1) > target
        low, high = np.where(above, half, low), np.where(above, high, half)
    return (low + high) / 2
