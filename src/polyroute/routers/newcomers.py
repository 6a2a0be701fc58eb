"""A candidate of which a few answers are known, judged net of how hard those queries are.

What the others scored on the very queries a newcomer was asked says how hard they are, so thirty answers tell what
fifty would alone. Letters: n queries, k candidates known well, c tasks, b levels of ease, a answers of a newcomer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from polyroute.routers.rows import check_shape
from polyroute.types import Array, Query

LIMIT = 500  # answers by which a candidate is no newcomer any more
SHARE = 0.25  # of the answers of the candidate with the most, below which one is a newcomer
LEVELS = 16  # of difficulty a task is summed up by
STEADY = 1.5  # answers to a query that the task's mean is worth
WEIGHT = 2.0  # answers that a believed mean is worth beside a counted one
SLOPES = (0.3, 0.5, 0.7, 0.9, 1.1, 1.4)
WORTH = 0.5  # candidates that the usual variances are worth
ABILITY, TASK = 0.4, 0.3  # usual variances in squared logits: between candidates, and of one candidate between tasks
EMPIRICAL = 0.5  # weight of the covariance that the known candidates show
KINDS = ((0.6, 1.0, 0.0), (0.4, 4.0, 1.0))  # weight, variance of ability, shift in its std: like others; of a new class
SAFE = 0.02  # chances are kept this far from 0 and 1
STEPS = 12


class Newcomers(NamedTuple):
    """What is believed of one who joins: P(right) = sigmoid(theta of the task + slope * how easy the query is)."""

    mean: Array  # [c] of theta
    covariance: Array  # [c, c] of theta
    ability: Array  # [] its part common to all tasks
    slope: Array  # []
    level: Array  # [c, b] how easy the queries of a task are, in logits around its mean
    mass: Array  # [c, b] share of the task's queries at each level
    key: Array  # [n] uint64, ascending: the queries learned from, by a hash of their text
    task: Array  # [n] int32
    easy: Array  # [n] float32

    def find(self, keys: Array) -> tuple[Array, Array, Array]:
        """Which of the keys [a] are known, and the tasks [a] int and ease [a] of those (else 0)."""
        if not len(self.key):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.intp), np.zeros(len(keys))
        at = np.minimum(self.key.searchsorted(keys), len(self.key) - 1)
        known = self.key[at] == keys
        return known, np.where(known, self.task[at], 0).astype(np.intp), np.where(known, self.easy[at], 0.0)

    def believe(self, task: Array, easy: Array, score: Array) -> tuple[Array, Array]:
        """Mean score on each task and the variance of the doubt about it, ([c], [c]), given answers.

        task: [a] int. easy: [a] logits. score: [a] 0..1. Two kinds of newcomer are held possible, weighed by how well
        each explains the answers. Source: Laplace's approximation, as in Rasmussen and Williams 2006, section 3.4.
        """
        said = [self._as(kind, task, self.slope * easy, score) for kind in KINDS]
        weight = np.array([one[2] for one in said])
        weight = np.exp(weight - weight.max())
        weight /= weight.sum()
        mean = sum(w * one[0] for w, one in zip(weight, said, strict=True))
        square = sum(w * (one[0] ** 2 + one[1]) for w, one in zip(weight, said, strict=True))
        return mean, np.maximum(square - mean**2, 1e-6)

    def _as(
        self, kind: tuple[float, float, float], task: Array, offset: Array, score: Array
    ) -> tuple[Array, Array, float]:
        """Mean score and variance on each task, and the log evidence, if the newcomer is of this kind."""
        weight, wider, shift = kind
        before = self.mean + shift * np.sqrt(self.ability)
        covariance = self.covariance + (wider - 1.0) * self.ability
        inverse = np.linalg.inv(covariance)
        c, theta = len(before), before
        for _ in range(STEPS):
            chance = sigmoid(theta[task] + offset)
            bend = np.bincount(task, np.maximum(chance * (1 - chance), SAFE), c)
            climb = np.bincount(task, score - chance, c) - inverse @ (theta - before)
            move = np.clip(np.linalg.solve(inverse + np.diag(bend), climb), -2.0, 2.0)
            theta = theta + move
            if np.abs(move).max() < 1e-5:
                break
        chance = np.clip(sigmoid(theta[task] + offset), 1e-6, 1 - 1e-6)
        fit = (score * np.log(chance) + (1 - score) * np.log(1 - chance)).sum()
        away = theta - before
        volume = np.linalg.slogdet(np.eye(c) + covariance * bend)[1]
        doubt = np.diag(np.linalg.inv(inverse + np.diag(bend)))
        return *self._scores(theta, doubt), float(np.log(weight) + fit - 0.5 * away @ inverse @ away - 0.5 * volume)

    def _scores(self, theta: Array, doubt: Array) -> tuple[Array, Array]:
        """Mean score [c] over each task's queries and its variance [c], theta being uncertain."""
        flat = 1 / np.sqrt(1 + np.pi * doubt / 8)  # a sigmoid averaged over a Gaussian is about a flatter sigmoid
        z = theta[:, None] + self.slope * self.level
        steep = sigmoid(z)
        steep = (self.mass * steep * (1 - steep)).sum(axis=1)
        return (self.mass * sigmoid(z * flat[:, None])).sum(axis=1), steep**2 * doubt

    @classmethod
    def of(cls, **held: Array) -> Self:
        """From saved arrays. Raises: ShapeError."""
        found = cls(**{name: np.asarray(held[name]) for name in cls._fields})
        c, n = len(check_shape("mean", found.mean, (None,))), len(check_shape("key", found.key, (None,)))
        b = check_shape("level", found.level, (c, None)).shape[1]
        for name, shape in (("covariance", (c, c)), ("mass", (c, b)), ("task", (n,)), ("easy", (n,))):
            check_shape(name, getattr(found, name), shape)
        return found


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def newcomers_among(seen: Array) -> Array:
    """[m] bool, candidates with so few answers beside the others' that they are judged as newcomers. seen: [n, m]."""
    count = seen.sum(axis=0)
    return (count < LIMIT) & (count < SHARE * count.max(initial=0))


def keys_of(queries: Sequence[Query]) -> Array:
    """[n] uint64: a hash of each query's text, or of its embedding where there is no text."""
    held = [q.text.encode("utf-8", "replace") or np.asarray(q.embedding, np.float32).tobytes() for q in queries]
    return np.frombuffer(b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in held), np.uint64)


def ease(y: Array, seen: Array, expected: Array) -> Array:
    """How easy queries are [n], in logits: what those who answered scored, drawn to what is expected of them.

    y, seen: [n, k]. expected: [n, k], 0..1.
    """
    rest = np.where(seen, y - expected, 0.0).sum(axis=1) / (seen.sum(axis=1) + STEADY)
    chance = np.clip(expected.mean(axis=1) + rest, SAFE, 1 - SAFE)
    return np.log(chance / (1 - chance))


def learn_newcomers(
    y: Array, seen: Array, member: Array, parent: Array, table: Array, queries: Sequence[Query]
) -> Newcomers:
    """From candidates known well: how their abilities scatter, and how much harder one query is than another.

    y, seen: [n, k]. member: [n] task of each query. parent: [c] data set of each task. table: [c, k] mean scores. Each
    known candidate is looked at with the ease that the others' answers give, as a newcomer will be.
    """
    c, k = table.shape
    tasks = np.eye(c)[member].T
    table = (tasks @ np.where(seen, y, 0.0) + WEIGHT * table) / (tasks @ seen.astype(float) + WEIGHT)
    table = np.clip(table, SAFE, 1 - SAFE)
    size = np.maximum(np.bincount(member, minlength=c), 1)
    easy = _centred(ease(y, seen, table[member]), member, size)
    level, mass, _ = _levels(easy, member, c)
    slope, theta = 0.4, np.log(table / (1 - table))
    if k > 1:
        without = []
        for j in range(k):
            rest = np.arange(k) != j
            e = _centred(ease(y[:, rest], seen[:, rest], table[member][:, rest]), member, size)
            without.append(_levels(e, member, c))
        slope, theta = max((_at_slope(s, without, y, seen, table) for s in SLOPES), key=lambda one: one[2])[:2]
    mean, covariance, ability = _scatter(theta, size, parent)
    keys = keys_of(queries)
    order = np.unique(keys, return_index=True)[1]
    return Newcomers(
        mean, covariance, np.array(ability), np.array(slope), level, mass,
        keys[order], member[order].astype(np.int32), easy[order].astype(np.float32),
    )  # fmt: skip


def _centred(easy: Array, member: Array, size: Array) -> Array:
    return easy - (np.bincount(member, easy, len(size)) / size)[member]


def _levels(easy: Array, member: Array, c: int) -> tuple[Array, Array, Array]:
    """Mean ease and share of LEVELS equal parts of each task's queries [c, b], and each query's part [n] in c * b."""
    rank = np.empty(len(easy), dtype=np.intp)
    order = np.lexsort((easy, member))
    count = np.bincount(member, minlength=c)
    start = np.cumsum(count) - count
    rank[order] = np.arange(len(easy)) - start[member[order]]
    cell = member * LEVELS + rank * LEVELS // np.maximum(count[member], 1)
    num = np.bincount(cell, minlength=c * LEVELS)
    level = np.bincount(cell, easy, c * LEVELS) / np.maximum(num, 1)
    mass = num.reshape(c, LEVELS) / np.maximum(count, 1)[:, None]
    mass[count == 0, 0] = 1.0
    return level.reshape(c, LEVELS), mass, cell


def _at_slope(
    slope: float, without: Sequence[tuple[Array, Array, Array]], y: Array, seen: Array, table: Array
) -> tuple[float, Array, float]:
    """The slope, theta [c, k] that meets each known candidate's task means, and the likelihood of its answers."""
    theta, likely = np.empty_like(table), 0.0
    for j, (level, mass, cell) in enumerate(without):
        theta[:, j] = _meeting(table[:, j], slope * level, mass)
        chance = np.clip(sigmoid(theta[:, j, None] + slope * level), 0.01, 0.99).ravel()
        rows = seen[:, j]
        right = np.bincount(cell[rows], y[rows, j], len(chance))
        wrong = np.bincount(cell[rows], minlength=len(chance)) - right
        likely += float(right @ np.log(chance) + wrong @ np.log(1 - chance))
    return slope, theta, likely


def _meeting(score: Array, offset: Array, mass: Array) -> Array:
    """theta [c] at which the mean over levels is the score [c]. offset, mass: [c, b]."""
    theta = np.zeros(len(score))
    for _ in range(25):
        chance = sigmoid(theta[:, None] + offset)
        short = score - (mass * chance).sum(axis=1)
        theta = np.clip(theta + short / np.maximum((mass * chance * (1 - chance)).sum(axis=1), SAFE), -6.0, 6.0)
    return theta


def _scatter(theta: Array, size: Array, parent: Array) -> tuple[Array, Array, float]:
    """Mean [c] and covariance [c, c] of theta over candidates, and the part of the latter common to all tasks.

    theta: [c, k]. Candidates differ in ability, and in tasks; variances are drawn to the usual ones, and the covariance
    is half what that alone says and half what the known ones show.
    """
    c, k = theta.shape
    mean = theta.mean(axis=1)
    away = theta - mean[:, None]
    share = size / size.sum()
    overall = share @ away
    rest = np.maximum(((away - overall) ** 2).sum(axis=1) - (k - 1) / np.maximum(0.15 * size, 1.0), 0.0)
    ability = float((overall**2).sum() + WORTH * ABILITY) / (k - 1 + WORTH)
    usual = float(share @ rest + WORTH * TASK) / (k - 1 + WORTH)
    own = (rest + WORTH * usual) / (k - 1 + WORTH)
    covariance = ability + np.diag(own)
    if len(np.unique(parent)) < c:  # half of what is a task's own is its data set's
        within = np.sqrt(own[:, None] * own) * (parent[:, None] == parent)
        covariance = ability + within / 2 + np.diag(own) / 2
    if k > 2:
        shown = away @ away.T / (k - 1) + 0.3 * np.diag(own)
        covariance = (1 - EMPIRICAL) * covariance + EMPIRICAL * shown
    if c > 1:
        ability = max(float(np.median(covariance[~np.eye(c, dtype=bool)])), 1e-3)
    return mean, covariance, ability
