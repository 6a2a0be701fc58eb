"""How likely is this answer right: learned from recorded answers, what they look like and who else said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.routers.calibrate import curve
from polyroute.routers.heads import logistic_posterior, sigmoid
from polyroute.routers.rows import check_shape
from polyroute.types import Array, Rng

FEW = 3  # candidates; with more, weights for each one's looks would outgrow the answers
SURE = 0.01  # probabilities are kept this far from 0 and 1 before a logit is taken


class Evidence(NamedTuple):
    """What answers look like, as numbers that signals/answer.py makes from texts. What was not answered is not read."""

    features: Array  # [n, m, f] of each answer; the first `kinds` columns say of which kind it is, one of them 1
    agreement: Array  # [n, m, m] in 0..1 between the answers of two candidates, zero diagonal
    kinds: int

    def take(self, rows: Array) -> Evidence:
        """The same for some queries. rows: [r] int, or [n] bool."""
        return Evidence(self.features[rows], self.agreement[rows], self.kinds)

    def among(self, columns: Array) -> Evidence:
        """The same for some candidates. columns: [c] int."""
        return Evidence(self.features[:, columns], self.agreement[:, columns][:, :, columns], self.kinds)


class Scaled(NamedTuple):
    """Columns brought to mean 0 and deviation 1, a constant first."""

    mean: Array  # [p]
    scale: Array  # [p]

    def __call__(self, x: Array) -> Array:
        """[r, 1 + p]."""
        return np.concatenate([np.ones((len(x), 1)), (x - self.mean) / self.scale], axis=1)


def scaled(x: Array) -> Scaled:
    """From rows [r, p]; a column that never varies stays 0."""
    scale = x.std(axis=0)
    return Scaled(x.mean(axis=0), np.where(scale > 1e-9, scale, 1.0))


def logit(p: Array) -> Array:
    """Log odds of probabilities, within what `SURE` leaves."""
    q = np.clip(p, SURE, 1 - SURE)
    return np.log(q / (1 - q))


class Verifier:
    """P(right) of each answer tried so far, from what was expected of it, its looks and the other answers.

    One logistic regression for all candidates: who answered; what the router expected of it before it answered; what
    the answer looks like; which of the others that were asked agree and which do not, each weighed by its name and by
    what was expected of it, and apart for each kind of answer (two models that pick the same of two options say less
    than two that pick the same of four). It is fitted on random sets of candidates tried, so that it holds for any;
    then an isotonic curve, fitted on held-out folds, makes the probability mean what it says.
    Where few candidates are judged, looks are also weighed apart for each: an odd length means another thing with each.
    Candidates it never saw answer are judged by all of this but their name.
    Source: verifiers of cascades, FrugalGPT (arXiv:2305.05176) and AutoMix (arXiv:2310.12963); features are our own.
    """

    def __init__(self, l2: float = 30.0, draws: int = 6, folds: int = 5, seed: int = 0):
        if not l2 > 0:
            raise ConfigError("l2", got=l2, expected="a penalty above 0")
        for name, value, least in (("draws", draws, 1), ("folds", folds, 2)):
            if value < least:
                raise ConfigError(name, got=value, expected=f"{least} or more")
        self.l2, self.draws, self.folds, self.seed = l2, draws, folds, seed
        self.weight_: Array | None = None  # [p]

    def fit(self, expected: Array, evidence: Evidence, quality: Array, ids: Sequence[str], fold: Array) -> Self:
        """Learn from n queries that m candidates answered.

        expected: [n, m] quality expected before the answer, by a router that did not learn from the row.
        quality: [n, m] in 0..1; NaN where not observed. fold: [n] int, near-duplicates in one fold.
        Raises: ShapeError; OutcomesError where nothing was observed.
        """
        for name, array in (("expected", expected), ("features", evidence.features[..., 0])):
            if np.shape(array) != np.shape(quality):
                raise ShapeError(name, got=np.shape(array), expected=np.shape(quality))
        if not np.isfinite(quality).any():
            raise OutcomesError("quality: expected answers with a score to learn from, got none.")
        self.column_ = {name: j for j, name in enumerate(ids)}
        rows, tried = self._drawn(np.isfinite(quality), np.random.default_rng(self.seed))
        r, j = np.nonzero(tried)
        i = rows[r]
        phi = self._phi(tried[r], j, logit(expected)[i], evidence.take(i), ids)
        y, part = quality[i, j], fold[i]
        held = np.full(len(y), np.nan)
        for k in np.unique(part):
            learn = part != k
            if learn.any():
                held[~learn] = self._head(phi[learn], y[learn])(phi[~learn])
        known = np.isfinite(held)
        self.curve_ = curve(held[known], y[known]) if known.any() else np.zeros((3, 0))
        self._head(phi, y)
        return self

    def _drawn(self, seen: Array, rng: Rng) -> tuple[Array, Array]:
        """Rows [r] and who was tried there [r, m]: `draws` random sets of those that answered, of every size."""
        rows = np.repeat(np.flatnonzero(seen.any(axis=1)), self.draws)
        luck = np.where(seen[rows], rng.random((len(rows), seen.shape[1])), np.inf)
        place = luck.argsort(axis=1).argsort(axis=1)
        size = rng.integers(1, seen[rows].sum(axis=1) + 1)
        return rows, (place < size[:, None]) & seen[rows]

    def _head(self, phi: Array, y: Array) -> Any:
        self.scaled_ = scaled(phi)
        x = self.scaled_(phi)
        penalty = np.full(x.shape[1], self.l2)
        penalty[0] = 1e-3
        self.weight_ = weight = logistic_posterior(x, y, np.zeros(len(y)), penalty, steps=15)[0]
        scale = self.scaled_
        return lambda rows: sigmoid(scale(rows) @ weight)

    def _phi(self, tried: Array, j: Array, odds: Array, evidence: Evidence, ids: Sequence[str]) -> Array:
        """Features [r, p] of the answer of candidate j [r] among those tried [r, m]. odds: [r, m] expected, logits."""
        at, rows = [self.column_.get(name, -1) for name in ids], np.arange(len(tried))
        names = np.vstack([np.eye(len(self.column_)), np.zeros(len(self.column_))])[at]  # [m, known]
        others = tried.copy()
        others[rows, j] = False
        alike = evidence.agreement[rows, j]
        agree, differ = np.where(others, alike, 0.0), np.where(others, 1 - alike, 0.0)
        looks = evidence.features[rows, j]
        kind = looks[:, : evidence.kinds]
        counts = [agree.sum(axis=1), differ.sum(axis=1), (agree * odds).sum(axis=1), (differ * odds).sum(axis=1)]
        own, nearest = odds[rows, j], agree.max(axis=1, initial=0.0)
        crossed = names[j][:, :, None] * looks[:, None, :] if len(self.column_) <= FEW else np.zeros((len(j), 0))
        plain = np.stack([own, *counts, nearest, odds.mean(axis=1)], axis=1)
        return np.concatenate(
            [crossed.reshape(len(j), -1), names[j], looks, agree @ names, differ @ names, plain,
             *(column[:, None] * kind for column in (own, *counts))],
            axis=1,
        )  # fmt: skip

    def right(self, expected: Array, evidence: Evidence, tried: Array, ids: Sequence[str]) -> Array:
        """P(right) [n, m] of the answers of those tried [n, m] bool; NaN for the others.

        expected: [n, m] before the answer. Of the evidence only what was tried is read.
        """
        if self.weight_ is None:
            raise NotFittedError(self)
        found = np.full(tried.shape, np.nan)
        i, j = np.nonzero(tried)
        if len(i):
            phi = self._phi(tried[i], j, logit(expected)[i], evidence.take(i), ids)
            raw = sigmoid(self.scaled_(phi) @ self.weight_)
            found[i, j] = np.interp(raw, self.curve_[0], self.curve_[1]) if self.curve_.size else raw
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.weight_ is None:
            raise NotFittedError(self)
        params = {"l2": self.l2, "draws": self.draws, "folds": self.folds, "seed": self.seed}
        arrays = {"weight": self.weight_, "curve": self.curve_, "mean": self.scaled_.mean, "scale": self.scaled_.scale}
        return params | {"candidates": list(self.column_)}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        verifier = cls(**{name: value for name, value in params.items() if name != "candidates"})
        verifier.column_ = {name: j for j, name in enumerate(params["candidates"])}
        verifier.weight_ = check_shape("weight", np.asarray(arrays["weight"], float), (None,))
        p = len(verifier.weight_) - 1
        verifier.scaled_ = Scaled(*(check_shape(n, np.asarray(arrays[n], float), (p,)) for n in ("mean", "scale")))
        verifier.curve_ = check_shape("curve", np.asarray(arrays["curve"], float), (3, None))
        return verifier
