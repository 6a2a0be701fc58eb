"""What a coarser estimate leaves over, by similarity: a kernel ridge whose shrinkage is learned, not set.

Letters: n queries, m candidates, d width of what is read of a query, c tasks, l landmarks, s strengths of shrinkage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyroute.routers.mix import nonnegative
from polyroute.routers.tasks import Classes
from polyroute.types import Array, Rng

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
LANDMARKS = 512


class Kernel(NamedTuple):
    """Similarity to a few known queries of the same data set: exp(-|x - z|^2 / scale) * P(x is of z's data set)."""

    landmarks: Array  # [l, d] float32
    length: Array  # [l] float32 squared lengths of the landmarks over the scale
    scale: float  # mean squared distance of landmarks
    same: Array  # [c, l] float32, 1 where a task is of the landmark's data set

    def __call__(self, x: Array, share: Array) -> Array:
        """[n, l] float32. x: [n, d]. share: [n, c] P(task | query)."""
        alike = (x * np.float32(2 / self.scale)) @ self.landmarks.T
        alike -= self.length
        alike -= (np.vecdot(x, x) / self.scale)[:, None]
        np.exp(alike, out=alike)
        alike *= share @ self.same
        return alike

    def among_landmarks(self) -> Array:
        """[l, l] of the landmarks themselves, whose data sets are known."""
        tasks, task = len(self.same), self.same.argmax(axis=0)
        return self(self.landmarks, np.eye(tasks, dtype=np.float32)[task])


class Left(NamedTuple):
    """What to add to the coarser estimate: kernel(x, share) @ weight."""

    common: Array  # [l] for any candidate, tried or not
    own: Array  # [l, m] what each adds to that
    shares: Array  # [2, s] of each strength, in `common` and in `own`
    std: Array  # [1 + m] doubt: as much is taken to be still unknown as was found; for strangers first


def learn_kernel(x: Array, tasks: Classes, rng: Rng, num_landmarks: int = LANDMARKS) -> Kernel:
    """Landmarks drawn from the rows x [n, d], whose tasks are known."""
    drawn = np.sort(rng.permutation(len(x))[:num_landmarks])
    z = np.ascontiguousarray(x[drawn], dtype=np.float32)
    same = tasks.parent[:, None] == tasks.parent[tasks.member[drawn]]
    spread = z - z.mean(axis=0)
    scale = max(2 * float(np.vecdot(spread, spread).mean()), 1e-6)
    return Kernel(z, (np.vecdot(z, z) / scale).astype(np.float32), scale, same.astype(np.float32))


def learn_left(kernel: Kernel, alike: Array, left: Array, seen: Array, fold: Array) -> Left:
    """Fit what is left over [n, m] of queries like the landmarks by `alike` [n, l]; NaN-free, 0 where not seen [n, m].

    Part of it is common to all candidates (a hard question), part is each one's own. Each is a blend of ridges of all
    STRENGTHS, weighed by non-negative least squares on folds [n] they had not seen; where nothing helps there, nothing
    is added. Source: subset of regressors, Silverman 1985; the blend is stacking, Breiman 1996.
    """
    strength, turn = np.linalg.eigh(kernel.among_landmarks().astype(float))
    root = turn / np.sqrt(np.maximum(strength, 1e-4))  # [l, l]: features alike @ root have the kernel as product
    phi = alike.astype(float) @ root
    common = left.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    own = np.where(seen, left - common[:, None], 0.0)
    targets = np.column_stack([common, own])
    known = np.column_stack([seen.any(axis=1), seen])
    said = np.zeros((len(STRENGTHS), *targets.shape))
    for k in np.unique(fold):
        away = fold != k
        weights = _ridges(phi[away], targets[away], known[away])
        said[:, ~away] = np.einsum("nl,slm->snm", phi[~away], weights)
    shares = np.stack([_shares(said[:, :, :1], targets[:, :1], known[:, :1]), _shares(said[:, :, 1:], own, seen)])
    weights = np.einsum("kl,slm->skm", root, _ridges(phi, targets, known))
    found = np.concatenate([
        np.tensordot(shares[0], said[:, :, :1], 1), np.tensordot(shares[1], said[:, :, 1:], 1)
    ], axis=1)  # fmt: skip
    std = np.sqrt((found**2).mean(axis=0))
    std[1:] = np.hypot(std[1:], std[0])
    add = np.tensordot(shares[0], weights[:, :, 0], 1), np.tensordot(shares[1], weights[:, :, 1:], 1)
    return Left(add[0].astype(np.float32), add[1].astype(np.float32), shares, std)


def _ridges(phi: Array, targets: Array, known: Array) -> Array:
    """Ridge weights [s, l, 1 + m] at every strength; columns with the same rows share a decomposition."""
    weights = np.zeros((len(STRENGTHS), phi.shape[1], targets.shape[1]))
    for columns in _alike(known):
        rows = known[:, columns[0]]
        if not rows.any():
            continue
        part = phi[rows]
        size, turn = np.linalg.eigh(part.T @ part)
        turned = turn.T @ (part.T @ targets[np.ix_(rows, columns)])
        for s, strength in enumerate(STRENGTHS):
            weights[s][:, columns] = turn @ (turned / (np.maximum(size, 0.0) + strength)[:, None])
    return weights


def _alike(known: Array) -> Sequence[Array]:
    """Columns of known [n, k] that know the same rows."""
    kinds: dict[bytes, list[int]] = {}
    for j, column in enumerate(known.T):
        kinds.setdefault(np.packbits(column).tobytes(), []).append(j)
    return [np.array(columns) for columns in kinds.values()]


def _shares(said: Array, wanted: Array, seen: Array) -> Array:
    """Weights [s] of at most 1 in all, by non-negative least squares over the cells seen."""
    a, b = said[:, seen], wanted[seen]
    shares = nonnegative(a @ a.T, a @ b) if b.size else np.zeros(len(said))
    return shares / max(float(shares.sum()), 1.0)
