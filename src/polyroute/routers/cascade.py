"""A router that reads answers: before any, an estimate as from any router; after some, accept one or ask whom next."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError, UnknownCandidateError
from polyroute.protocols import Router
from polyroute.routers.rows import observed
from polyroute.routers.stopping import GRID, NEVER, Stopping, member, subsets
from polyroute.routers.verifier import Evidence, Verifier
from polyroute.types import Array, Candidate, Estimates, Outcomes, Query

MOST_RUNGS = 6  # a plan looks at every subset of its rungs


class Verdict(NamedTuple):
    """What to do with the answers so far, for n queries."""

    keep: Array  # [n] column of the answer to give; -1 where there is none yet
    ask: Array  # [n] column to ask next; -1 where the answer kept is accepted
    right: Array  # [n] P(right) of the answer kept; -1 where there is none yet
    gain: Array  # [n] quality expected from asking on, less its price; 0 or less where nobody is asked


class Reading(NamedTuple):
    """What the answers so far say, whatever a unit of cost is worth; columns are the rungs of the plan, [n, k]."""

    at: Array  # [k] column of each rung in the pool; -1 where it is not there
    asked: Array  # [n, k] bool
    right: Array  # [n, k] P(right) of those asked; NaN for the others
    price: Array  # [n, k] expected cost, in units of the dearest model's mean cost
    known: Array  # [n, 1 + p] what the plan goes by


class Cascade:
    """Estimates before the answer, a verifier of answers, and a plan that says when to stop asking.

    prior: predicts quality; cost: predicts cost; both are fitted here. `fit` with `evidence` of recorded answers learns
    the verifier on predictions that did not see the row, chooses up to `rungs` candidates for the plan (those most
    often among the two best for their price) and works the plan out. Without evidence it is its prior and cost.
    `read` judges the answers tried; `decide` accepts the likeliest one, or names whom to ask next where the gain
    expected from that, later tries included, exceeds the price. Every answer tried is paid.
    """

    def __init__(
        self,
        prior: Router,
        cost: Router,
        rungs: int = MOST_RUNGS,
        l2: float = 30.0,
        shrink: float = 1000.0,
        folds: int = 5,
        draws: int = 6,
        seed: int = 0,
    ):
        if not 1 <= rungs <= MOST_RUNGS:
            raise ConfigError("rungs", got=rungs, expected=f"1 to {MOST_RUNGS} candidates")
        self.prior, self.cost, self.rungs, self.folds, self.seed = prior, cost, rungs, folds, seed
        self.l2, self.shrink, self.draws = l2, shrink, draws
        self.rungs_: list[str] | None = None  # ids, cheapest first; empty: fitted without answers

    def fit(self, outcomes: Outcomes, evidence: Evidence | None = None) -> Self:
        """Learn. evidence: of the recorded answers, [n, m]; cells that were not observed are not read."""
        self.rungs_ = None
        if evidence is not None:
            self._fit_answers(outcomes, evidence)
        self.prior.fit(outcomes)
        self.cost.fit(outcomes)
        self.rungs_ = self.rungs_ or []
        return self

    def _fit_answers(self, outcomes: Outcomes, evidence: Evidence) -> None:
        if np.shape(evidence.features)[:2] != outcomes.observed.shape:
            raise ShapeError(
                "evidence.features", got=np.shape(evidence.features), expected=(*outcomes.observed.shape, "f")
            )
        fold = fold_of(outcomes, self.folds, self.seed)
        said = held_out(outcomes, fold, {"quality": self.prior, "cost": self.cost})
        quality, seen = observed(outcomes, "quality")
        paid, _ = observed(outcomes, "cost")
        quality = np.where(seen & np.isfinite(said["quality"]), quality, np.nan)
        ids, means = (
            [c.id for c in outcomes.pool],
            np.where(seen, paid, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1),
        )
        self.reference_ = float(means.max(initial=0.0)) or 1.0
        expected, price = np.nan_to_num(said["quality"], nan=0.5), said["cost"] / self.reference_
        columns = self._choose(expected, price, means)
        whole = np.isfinite(quality[:, columns]).all(axis=1) & np.isfinite(price[:, columns]).all(axis=1)
        if not whole.any():
            raise OutcomesError(
                f"expected queries that all of {', '.join(ids[j] for j in columns)} answered, got none."
            )
        rows = np.flatnonzero(whole)
        cells = np.ix_(rows, columns)
        shown, names = evidence.take(rows).among(columns), [ids[j] for j in columns]
        self.verifier_ = self._verifier().fit(expected[cells], shown, quality[cells], names, fold[rows])
        right = self._held_out_right(expected[cells], shown, quality[cells], names, fold[rows])
        self.plan_ = Stopping(self.shrink).fit(
            expected[cells], shown, right, quality[cells], paid[cells] / self.reference_, price[cells]
        )
        self.rungs_ = names

    def _verifier(self) -> Verifier:
        return Verifier(self.l2, self.draws, self.folds, self.seed)

    def _choose(self, expected: Array, price: Array, means: Array) -> Array:
        """Columns of the rungs, cheapest first: those most often among the two best for their price."""
        m = expected.shape[1]
        count = np.zeros(m)
        dear = np.nan_to_num(price, nan=np.inf)
        for trade_off in GRID:
            utility = expected - trade_off * dear
            count += np.bincount(utility.argsort(axis=1)[:, -2:].ravel(), minlength=m)
        chosen = np.argsort(-count, kind="stable")[: min(self.rungs, m)]
        return chosen[np.argsort(means[chosen], kind="stable")]

    def _held_out_right(
        self, expected: Array, shown: Evidence, quality: Array, ids: Sequence[str], fold: Array
    ) -> Array:
        """[s, n, k] P(right) in every subset of the rungs, by verifiers that did not learn from the row's group."""
        n, k = quality.shape
        sets = subsets(k)
        found = np.full((len(sets), n, k), np.nan)
        for part in np.unique(fold):
            rows, rest = np.flatnonzero(fold == part), np.flatnonzero(fold != part)
            verifier = self.verifier_
            if len(rest):
                verifier = self._verifier().fit(expected[rest], shown.take(rest), quality[rest], ids, fold[rest])
            for s, chosen in enumerate(sets):
                tried = member(chosen, len(rows), k)
                found[s][rows] = verifier.right(expected[rows], shown.take(rows), tried, ids)
        return found

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        """Quality and cost before any answer."""
        if self.rungs_ is None:
            raise NotFittedError(self)
        said = {**self.prior.predict(queries, pool), **self.cost.predict(queries, pool)}
        return {name: said[name] for name in ("quality", "cost")}

    def read(
        self, expected: Array, price: Array, evidence: Evidence, tried: Array, pool: Sequence[Candidate]
    ) -> Reading:
        """Judge the answers so far of n queries; `decide` then says what to do at a trade-off.

        expected, price: [n, m] quality and cost (USD) before the answer, from `predict`. tried: [n, m] bool; of the
        evidence only what was tried is read. Raises: OutcomesError if it was fitted without answers;
        UnknownCandidateError if no rung is in the pool.
        """
        if self.rungs_ is None:
            raise NotFittedError(self)
        if not self.rungs_:
            raise OutcomesError("expected a cascade fitted with recorded answers, got none. Pass `evidence` to fit.")
        ids = [candidate.id for candidate in pool]
        at = np.array([ids.index(rung) if rung in ids else -1 for rung in self.rungs_])
        if (at < 0).all():
            raise UnknownCandidateError(self.rungs_, known=ids)
        known, asked, shown = expected[:, at], tried[:, at] & (at >= 0), evidence.among(at)
        right = np.full(asked.shape, np.nan)
        if asked.any():
            right = self.verifier_.right(known, shown, asked, self.rungs_)
        return Reading(at, asked, right, price[:, at] / self.reference_, self.plan_.read(known, shown, right, asked))

    def decide(self, reading: Reading, trade_off: float) -> Verdict:
        """Accept or ask on. trade_off: utility = quality - trade_off * cost / the dearest model's mean cost;
        infinite: only the cheapest is asked. A candidate of the pool that is no rung is never asked."""
        at, asked, right, price, known = reading
        rows, some = np.arange(len(asked)), asked.any(axis=1)
        best = np.where(asked, right, -1.0)
        lead = best.argmax(axis=1)
        if np.isinf(trade_off):
            value = np.where(some[:, None], NEVER, -price)
        else:
            value = self.plan_.worth(known, asked, trade_off) - trade_off * price
        value = np.where((at < 0) | asked, NEVER, value)
        ask = value.argmax(axis=1)
        gain = value[rows, ask] - np.where(some, best[rows, lead], NEVER)
        on = (value[rows, ask] > NEVER / 2) & ((gain > 0) | ~some)
        return Verdict(np.where(some, at[lead], -1), np.where(on, at[ask], -1), best[rows, lead], gain)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.rungs_ is None:
            raise NotFittedError(self)
        options = ("prior", "cost", "rungs", "l2", "shrink", "folds", "draws", "seed")
        params: dict[str, Any] = {name: getattr(self, name) for name in options} | {"chosen": self.rungs_}
        if not self.rungs_:
            return params, {}
        arrays: dict[str, Array] = {"reference": np.array(self.reference_)}
        for part in ("verifier", "plan"):
            own, held = getattr(self, part + "_").state()
            params[part] = own
            arrays |= {f"{part}.{name}": array for name, array in held.items()}
        return params, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        extra = ("chosen", "verifier", "plan")
        router = cls(**{name: value for name, value in params.items() if name not in extra})
        router.rungs_ = list(params["chosen"])
        if router.rungs_:
            held = {p: {k.removeprefix(p + "."): v for k, v in arrays.items() if k.startswith(p + ".")} for p in extra}
            router.verifier_ = Verifier.from_state(params["verifier"], held["verifier"])
            router.plan_ = Stopping.from_state(params["plan"], held["plan"])
            router.reference_ = float(arrays["reference"])
        return router


def fold_of(outcomes: Outcomes, folds: int, seed: int) -> Array:
    """[n] int: whole groups where the table has labels["group"]."""
    group = np.unique(outcomes.labels.get("group", np.arange(len(outcomes))), return_inverse=True)[1]
    count = int(group.max(initial=-1)) + 1
    return np.random.default_rng(seed).permutation(count)[group] % max(min(folds, count), 1)


def held_out(outcomes: Outcomes, fold: Array, routers: Mapping[str, Router]) -> dict[str, Array]:
    """Metric -> [n, m] expected by a copy of its router fitted on the other folds; NaN where there are none."""
    found = {metric: np.full(outcomes.observed.shape, np.nan) for metric in routers}
    for part in np.unique(fold):
        rows, rest = np.flatnonzero(fold == part), np.flatnonzero(fold != part)
        if not len(rest):
            continue
        for metric, router in routers.items():
            held = outcomes.take(rows)
            said = copy.deepcopy(router).fit(outcomes.take(rest)).predict(held.queries, held.pool)
            found[metric][rows] = said[metric].mean
    return found
