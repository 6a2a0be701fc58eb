"""Predictions made to mean what they say."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, UnknownCandidateError
from polyroute.protocols import OnlineRouter, Router
from polyroute.routers.rows import check_shape, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

POOLED = "*"  # the map of all candidates together
SMALLEST = 20  # outcomes in a bin


class Calibrated:
    """A router whose means pass through a rising curve fitted to what came of its predictions.

    `fit` predicts each fold of the queries by a copy of the router fitted on the other folds (whole groups where the
    table has labels["group"]), fits one isotonic curve per metric to those held-out pairs, and then fits the router on
    everything: no curve ever sees a prediction of a row its router learned from. by: "pool", one curve for all
    candidates, which keeps their order; or "candidate", each its own, drawn to the common one as if it had `kappa`
    outcomes there. With fewer than two groups there is nothing to hold out and means pass unchanged.
    The std passes unchanged. `update` goes to the router; the curves stay until the next `fit`.
    Source: Zadrozny and Elkan 2002; centred isotonic regression, Oron and Flournoy 2017 (arXiv:1701.05964).
    """

    def __init__(
        self,
        router: Router,
        kind: str = "isotonic",
        by: str = "pool",
        folds: int = 5,
        kappa: float = 200.0,
        seed: int = 0,
    ):
        if kind != "isotonic":
            raise ConfigError("kind", got=kind, expected="'isotonic'")
        if by not in ("pool", "candidate"):
            raise ConfigError("by", got=by, expected="'pool' or 'candidate'")
        if folds < 2:
            raise ConfigError("folds", got=folds, expected="2 or more")
        if not kappa >= 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations, 0 or more")
        self.router, self.kind, self.by, self.folds, self.kappa, self.seed = router, kind, by, folds, kappa, seed
        self.curves_: dict[str, dict[str, Array]] | None = None  # metric -> candidate or POOLED -> [3, b]

    def fit(self, outcomes: Outcomes) -> Self:
        said = self._held_out(outcomes)
        self.curves_ = {}
        for metric, mean in said.items():
            y, seen = observed(outcomes, metric)
            told = seen & ~np.isnan(mean)
            if not told.any():
                continue
            curves = {POOLED: curve(mean[told], y[told])}
            if self.by == "candidate":
                for j, candidate in enumerate(outcomes.pool):
                    if (rows := told[:, j]).any():
                        curves[candidate.id] = curve(mean[rows, j], y[rows, j])
            self.curves_[metric] = curves
        self.router.fit(outcomes)
        return self

    def _held_out(self, outcomes: Outcomes) -> dict[str, Array]:
        """Each metric's means [n, m] from routers that did not learn from the row; NaN where none could tell."""
        group = np.unique(outcomes.labels.get("group", np.arange(len(outcomes))), return_inverse=True)[1]
        num_groups = int(group.max(initial=-1)) + 1
        if num_groups < 2:
            return {}
        fold = np.random.default_rng(self.seed).permutation(num_groups)[group] % min(self.folds, num_groups)
        said: dict[str, Array] = {}
        for held in range(fold.max() + 1):
            rows = np.flatnonzero(fold == held)
            router = copy.deepcopy(self.router).fit(outcomes.take(fold != held))
            known, estimates = told(router, outcomes.take(rows))
            for metric in estimates.keys() & outcomes.values.keys():
                mean = said.setdefault(metric, np.full((len(outcomes), len(outcomes.pool)), np.nan))
                mean[np.ix_(rows, known)] = estimates[metric].mean
        return said

    def update(self, outcomes: Outcomes) -> None:
        """Pass the outcomes to the router, if it learns online."""
        if self.curves_ is None:
            raise NotFittedError(self)
        if isinstance(self.router, OnlineRouter):
            self.router.update(outcomes)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.curves_ is None:
            raise NotFittedError(self)
        estimates = self.router.predict(queries, pool)
        return {
            metric: Estimate(self._read(self.curves_[metric], estimate.mean, pool), estimate.std)
            if metric in self.curves_
            else estimate
            for metric, estimate in estimates.items()
        }

    def _read(self, curves: Mapping[str, Array], mean: Array, pool: Sequence[Candidate]) -> Array:
        common = curves[POOLED]
        read: Array = np.interp(mean, common[0], common[1])
        for j, candidate in enumerate(pool if self.by == "candidate" else ()):
            own = curves.get(candidate.id)
            if own is not None:
                count = own[2].sum()
                own_read = np.interp(mean[:, j], own[0], own[1])
                read[:, j] = (count * own_read + self.kappa * read[:, j]) / (count + self.kappa)
        return read

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.curves_ is None:
            raise NotFittedError(self)
        names = [(metric, candidate) for metric, curves in self.curves_.items() for candidate in curves]
        arrays = {f"curve{i}": self.curves_[metric][candidate] for i, (metric, candidate) in enumerate(names)}
        options = ("router", "kind", "by", "folds", "kappa", "seed")
        return {name: getattr(self, name) for name in options} | {"curves": [list(name) for name in names]}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(**{name: value for name, value in params.items() if name != "curves"})
        router.curves_ = {}
        for i, (metric, candidate) in enumerate(params["curves"]):
            held = check_shape(f"curve{i}", np.asarray(arrays[f"curve{i}"], float), (3, None))
            router.curves_.setdefault(metric, {})[candidate] = held
        return router


def told(router: Router, outcomes: Outcomes) -> tuple[Array, Estimates]:
    """Estimates for the candidates the router knows, and their columns."""
    try:
        return np.arange(len(outcomes.pool)), router.predict(outcomes.queries, outcomes.pool)
    except UnknownCandidateError as error:
        known = [j for j, candidate in enumerate(outcomes.pool) if candidate.id not in error.missing]
        return np.array(known, dtype=np.intp), router.predict(outcomes.queries, [outcomes.pool[j] for j in known])


def curve(said: Array, came: Array) -> Array:
    """A rising curve from predictions to outcomes, [3, b]: predicted, calibrated, outcomes behind each point.

    Pairs are sorted and averaged in bins of at least 20, or a two-hundredth of them if that is more; bins that fall
    are pooled. Read it by linear interpolation, which keeps the order of predictions where steps would tie them.
    """
    order = np.argsort(said, kind="stable")
    size = max(SMALLEST, -(-len(said) // 200))
    starts = np.arange(0, max(len(said) - size + 1, 1), size)
    count = np.diff(np.append(starts, len(said))).astype(float)
    x, y = (np.add.reduceat(values[order], starts) / count for values in (said, came))
    return isotonic(x, y, count)


def isotonic(x: Array, y: Array, weight: Array) -> Array:
    """The non-decreasing y nearest in weighted squares, by pooling adjacent violators; x sorted.

    Returns [3, b] for the b pooled blocks: mean x, mean y, weight. Equal x are one block.
    """
    blocks: list[tuple[float, float, float]] = []
    for block in zip(x.tolist(), y.tolist(), weight.tolist(), strict=True):
        a, b, w = block
        while blocks and (blocks[-1][1] >= b or blocks[-1][0] >= a):
            a0, b0, w0 = blocks.pop()
            a, b, w = (a0 * w0 + a * w) / (w0 + w), (b0 * w0 + b * w) / (w0 + w), w0 + w
        blocks.append((a, b, w))
    return np.array(blocks, dtype=float).reshape(-1, 3).T
