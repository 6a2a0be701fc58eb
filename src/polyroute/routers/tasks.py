"""Which task a query belongs to, and what each candidate scores there.

Most of what routers learn from one table is which benchmark a query resembles; here that is learned as such, from
labels where the table has them. Letters: n queries, m candidates, d width of what is read of a query, c tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.routers.cluster import kmeans
from polyroute.types import Array, Candidate, Outcomes, Rng

LABELS = ("dataset", "topic")  # of a table, coarse to fine
RARE = 20  # queries: a finer task with fewer is not told from its data set
PENALTY = 1 / 2  # of a squared weight of the recogniser, on features of about unit length
STEPS = 60
SHARP = 1.5  # power of the probabilities: held-out queries are recognised more surely than the penalty lets it say
CLUSTER_ROWS, MOST_CLUSTERS = 60, 24  # without labels: queries a cluster, and the most clusters
NOISE = 0.02  # least variance of one outcome
TURNS = 200  # of fitting tasks' means and candidates' levels in turn


class Classes(NamedTuple):
    """The tasks of a table's queries."""

    member: Array  # [n] int
    parent: Array  # [c] int, the data set each belongs to
    labelled: bool  # False: clusters
    names: Array  # [c] str; numbers where tasks are clusters


def classes_of(outcomes: Outcomes, x: Array, rng: Rng) -> Classes:
    """Tasks from the labels `dataset` and `topic`, or where there are none clusters of x [n, d]."""
    present = [np.asarray(outcomes.labels[name]).astype(str) for name in LABELS if name in outcomes.labels]
    if not present or all(len(np.unique(column)) < 2 for column in present):
        centres = kmeans(_unit(x), max(1, min(MOST_CLUSTERS, len(x) // CLUSTER_ROWS)), rng)
        member = np.unique((_unit(x) @ centres.T).argmax(axis=1), return_inverse=True)[1]
        parent = np.zeros(member.max(initial=0) + 1, np.intp)
        return Classes(member, parent, False, np.array([f"cluster {k}" for k in range(len(parent))]))
    coarse, fine = present[0], present[0]
    for column in present[1:]:
        both = np.char.add(np.char.add(coarse, "\n"), column)
        _, at, count = np.unique(both, return_inverse=True, return_counts=True)
        fine = np.where((count[at] >= RARE) & (column != ""), both, coarse)
    names, first, member = np.unique(fine, return_index=True, return_inverse=True)
    parent = np.unique(coarse[first], return_inverse=True)[1]
    assert len(parent) == len(names)
    return Classes(member, parent, True, np.char.replace(names, "\n", " / "))


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def recognise(x: Array, weight: Array) -> Array:
    """P(task | query) [n, c]. x: [n, d]. weight: [1 + d, c], the constant first."""
    return softmax(SHARP * (x @ weight[1:] + weight[0]))


def softmax(z: Array) -> Array:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    return z


def learn_recogniser(x: Array, member: Array, num_tasks: int, steps: int = STEPS, penalty: float = PENALTY) -> Array:
    """Weights [1 + d, c] of a multinomial logistic regression on x [n, d], float32.

    Newton steps with one fixed bound of the curvature, so a single matrix is inverted, with momentum that starts anew
    whenever it points uphill. Source: Boehning 1992; momentum, Nesterov 1983; restarts, arXiv:1204.3982.
    """
    if num_tasks == 1 or not len(x):
        return np.zeros((1 + x.shape[1], num_tasks), dtype=np.float32)
    wide = np.hstack([np.ones((len(x), 1), np.float32), x.astype(np.float32)])
    ridge = np.full(wide.shape[1], penalty)
    ridge[0] = 1e-3
    inverse = np.linalg.inv((wide.T @ wide).astype(float) / 2 + np.diag(ridge)).astype(np.float32)
    ridge = ridge[:, None].astype(np.float32)
    weight = np.zeros((wide.shape[1], num_tasks), dtype=np.float32)
    ahead, momentum = weight, 1.0
    rows = np.arange(len(x))
    for _ in range(steps):
        miss = -softmax(wide @ ahead)
        miss[rows, member] += 1.0
        move = inverse @ (wide.T @ miss - ridge * ahead)
        new = ahead + move
        if float(np.vdot(move, new - weight)) < 0:
            momentum = 1.0
        later = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + np.float32((momentum - 1) / later) * (new - weight)
        weight, momentum = new, later
    return weight


class Prior(NamedTuple):
    """What is believed of any candidate's mean score on each task before it is tried."""

    mean: Array  # [c]
    covariance: Array  # [c, c]
    noise: Array  # [c] variance of one outcome
    price: Array  # [2] log price of a typical candidate; what a unit of it is worth


class Believed(NamedTuple):
    """Mean score of each candidate on each task."""

    mean: Array  # [c, m]
    variance: Array  # [c, m] of the doubt about it


def learn_prior(sums: Array, parent: Array, pool: Sequence[Candidate]) -> Prior:
    """From the candidates there are: tasks differ, candidates differ, and some differ more in some tasks.

    sums: [3, c, m] of scores, of their squares, and how many were seen. A candidate's deviation from a task's mean is
    the sum of one for all tasks, one for its data set and one for itself; each kind's variance is what is left of the
    scatter when noise is taken off.
    """
    total, square, count = sums
    num = count.sum(axis=1)
    mean, overall = _levels(total, count)
    inside = (square - total**2 / np.maximum(count, 1)).sum(axis=1)
    noise = np.maximum((inside + RARE * 0.2) / (np.maximum(num - (count > 0).sum(axis=1), 0) + RARE), NOISE)
    weight = count / (count + 10.0)
    away = np.where(count > 0, total / np.maximum(count, 1) - mean[:, None], 0.0)  # [c, m]
    several = np.bincount(parent)[parent][:, None] > 1  # a data set of one task has no deviation of its own
    data_set = several * _weighted(away - overall, count, parent)[parent]
    left = away - overall - data_set
    m = max((count.sum(axis=0) > 0).sum() - 1, 1)
    doubt = noise[:, None] / np.maximum(count, 1)
    own = float((weight * (left**2 - doubt)).sum() / max(weight.sum(), 1.0))
    shared = float((weight * data_set**2).sum() / max((weight * several).sum(), 1.0))
    single = float((overall[0] ** 2).sum() / m)
    same = parent[:, None] == parent[None]
    covariance = max(single, 1e-3) + max(shared, 0.0) * same + max(own, 5e-4) * np.eye(len(parent))
    return Prior(mean, covariance, noise, _worth(overall[0], count.sum(axis=0), pool))


def _levels(total: Array, count: Array) -> tuple[Array, Array]:
    """Mean score of each task [c] for a candidate as good as most, and how much better each candidate is [1, m].

    Fitted together: where candidates were not asked the same, as in tables put together or in a log, a task that only
    weak ones tried is not hard for that. Levels average 0 over the candidates tried.
    """
    num, tried = count.sum(axis=1), count.sum(axis=0) > 0
    average = total / np.maximum(count, 1)
    everywhere = total.sum() / max(count.sum(), 1.0)
    level = np.zeros((1, count.shape[1]))
    for _ in range(TURNS):
        mean = ((total - count * level).sum(axis=1) + RARE * everywhere) / (num + RARE)
        away = np.where(count > 0, average - mean[:, None], 0.0)  # [c, m]
        new = _weighted(away, count, np.zeros(len(count), np.intp))
        new -= new[0, tried].mean() if tried.any() else 0.0
        moved, level = float(np.abs(new - level).max(initial=0.0)), new
        if moved < 1e-6:
            break
    return mean, level


def _weighted(away: Array, count: Array, parent: Array) -> Array:
    """Means of rows of `away` [c, m] over the tasks of each parent, weighted by count and drawn to 0: [parents, m]."""
    k = parent.max(initial=0) + 1
    top, bottom = np.zeros((k, away.shape[1])), np.zeros((k, away.shape[1]))
    np.add.at(top, parent, away * count)
    np.add.at(bottom, parent, count)
    return top / (bottom + 10.0)


def _worth(ability: Array, count: Array, pool: Sequence[Candidate]) -> Array:
    """[2] mean log price of the candidates tried, and quality a unit of it, drawn to 0 as by four candidates."""
    price = np.array([max(c.profile.price_in + c.profile.price_out, 0.0) for c in pool])
    known = (price > 0) & (count > 0)
    if known.sum() < 3:
        return np.zeros(2)
    log = np.log(price[known])
    x = log - log.mean()
    return np.array([log.mean(), max(float(x @ ability[known]) / (float(x @ x) + 4.0 * max(x.var(), 1e-6)), 0.0)])


def believe(prior: Prior, sums: Array, pool: Sequence[Candidate]) -> Believed:
    """Each candidate's tasks given its outcomes, as a Gaussian posterior. sums: [3, c, m] in the pool's order."""
    total, _, count = sums
    mean = np.empty_like(total)
    variance = np.empty_like(total)
    for j, candidate in enumerate(pool):
        price = candidate.profile.price_in + candidate.profile.price_out
        shift = prior.price[1] * (np.log(price) - prior.price[0]) if price > 0 else 0.0
        before = prior.mean + shift
        at = np.flatnonzero(count[:, j] > 1e-6)
        across = prior.covariance[:, at]
        seen = prior.covariance[np.ix_(at, at)] + np.diag(prior.noise[at] / count[at, j])
        gain = np.linalg.solve(seen, across.T).T if len(at) else across
        mean[:, j] = before + gain @ (total[at, j] / count[at, j] - before[at])
        variance[:, j] = np.maximum(np.diag(prior.covariance) - (gain * across).sum(axis=1), 1e-6)
    return Believed(np.clip(mean, 0.0, 1.0), variance)


def sums_of(y: Array, seen: Array, share: Array) -> Array:
    """[3, c, m] of scores, squares and counts. y, seen: [n, m]. share: [n, c], each query's part in each task."""
    y = np.where(seen, y, 0.0)
    return np.stack([share.T @ y, share.T @ y**2, share.T @ seen.astype(float)])
