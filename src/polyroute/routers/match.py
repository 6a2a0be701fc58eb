"""What a query needs against what a candidate can: the shortfall, dimension by dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.routers.linear import Linear
from polyroute.routers.rows import check_shape, nothing, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

NARROWEST = 0.02  # a band of needs is never taken as narrower: a head that says one thing tells nobody apart
SHRINK = 5.0  # outcomes by which a candidate's mean in a dimension is drawn to its mean over all


class Match:
    """Estimate "shortfall" and "capability" from needs [n, K] and profiles [m, K], one entry a dimension.

    Needs are learned (a logistic head a dimension, see `needs_from`); profiles are configuration. A profile is the
    candidate's `ability` in each dimension, in any unit; if a candidate lacks one of them, everyone's profile is its
    shrunk mean quality in the fitted table. `calibrate` brings profiles into the band of the needs: the weakest of a
    reference pool stands at the `band[0]` percentile of what queries need, the strongest at `band[1]`. Then

        shortfall = sum_k w_k * max(0, need_k - profile_k),   w_k in proportion to weights_k / width of band k, sum 1

    so a surplus in one dimension never makes up for a lack in another. Routed by policies/shortfall.py. Neither metric
    is a probability; the std of the shortfall is that of the needs, the std of capability that of a place anywhere in
    the band. A changed reference pool moves every profile: calibrate again, and log that you did.
    label: which label of the table names a query's dimension. dimensions: label -> dimension; None: the labels.
    Source: HyDRA; its equations are known through a third party's reconstruction, the percentiles are its reading.
    """

    def __init__(
        self,
        label: str = "dataset",
        dimensions: Mapping[str, str] | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        band: Sequence[float] = (10.0, 90.0),
        l2: float = 10.0,
    ):
        if len(band) != 2 or not 0 <= band[0] < band[1] <= 100:
            raise ConfigError("band", got=band, expected="two rising percentiles, 0 to 100")
        for name, weight in (weights or {}).items():
            if not (weight >= 0 and np.isfinite(weight)):
                raise ConfigError(f"weights.{name}", got=weight, expected="an importance, 0 or more")
        self.label, self.band, self.l2 = label, tuple(float(edge) for edge in band), l2
        self.dimensions = None if dimensions is None else dict(dimensions)
        self.weights = None if weights is None else dict(weights)
        self.heads_: Linear | None = None

    def fit(self, outcomes: Outcomes) -> Self:
        """Learn needs and mean profiles from outcomes of any pool; then calibrate on these queries and this pool."""
        names = self._dimension_of(outcomes)
        self.names_ = [str(name) for name in np.unique(names)]
        needs = needs_from(outcomes, names, self.names_)
        known = np.isfinite(needs).all(axis=1)
        if not known.any():
            raise OutcomesError("values['quality']: expected at least one outcome to learn needs from, got none.")
        kinds = [Candidate(name, kind="dimension") for name in self.names_]
        table = Outcomes(outcomes.queries, kinds, {"quality": needs}, np.isfinite(needs)).take(known)
        self.heads_ = Linear("quality", l2=self.l2).fit(table)
        self.seen_ = means_by(outcomes, names, self.names_)
        pool = [c for c in outcomes.pool if c.id in self.seen_]
        return self.calibrate(outcomes.queries, pool)

    def _dimension_of(self, outcomes: Outcomes) -> Array:
        if self.label not in outcomes.labels:
            raise OutcomesError(
                f"labels[{self.label!r}]: expected each query's dimension there, got labels {sorted(outcomes.labels)}."
            )
        labels = [str(name) for name in outcomes.labels[self.label]]
        if self.dimensions is None:
            return np.array(labels)
        if missing := sorted(set(labels) - set(self.dimensions)):
            raise OutcomesError(f"dimensions: expected one for each label, got none for {', '.join(missing)}.")
        return np.array([self.dimensions[name] for name in labels])

    def calibrate(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Self:
        """Set the bands from what these queries need and the range of this pool's profiles; needs no outcomes."""
        needs = self.needs(queries).mean
        self.low_, self.high_ = np.percentile(needs, self.band, axis=0)  # [K]
        self.high_ = np.maximum(self.high_, self.low_ + NARROWEST)
        raw = self._raw(pool)
        self.weakest_, self.strongest_ = raw.min(axis=0), raw.max(axis=0)
        return self

    def needs(self, queries: Sequence[Query]) -> Estimate:
        """What each query needs in each dimension of `names_`, 0..1, [n, K]."""
        if self.heads_ is None:
            raise NotFittedError(self)
        return self.heads_.predict(queries, [Candidate(name, kind="dimension") for name in self.names_])["quality"]

    def profiles(self, pool: Sequence[Candidate]) -> Array:
        """What each candidate can in each dimension, in the band of the needs, [m, K]."""
        room = self.strongest_ - self.weakest_
        share = np.where(room > 0, (self._raw(pool) - self.weakest_) / np.where(room > 0, room, 1.0), 1.0)
        return self.low_ + share * (self.high_ - self.low_)

    def _raw(self, pool: Sequence[Candidate]) -> Array:
        """Profiles in their own unit, [m, K]."""
        if all(name in c.profile.ability for c in pool for name in self.names_):
            return np.array([[c.profile.ability[k] for k in self.names_] for c in pool], dtype=float)
        if missing := [c.id for c in pool if c.id not in self.seen_]:
            raise UnknownCandidateError(missing, known=self.seen_)
        return np.array([self.seen_[c.id] for c in pool], dtype=float)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.heads_ is None:
            raise NotFittedError(self)
        need = self.needs(queries)
        if not len(queries) or not len(pool):
            n, m = len(queries), len(pool)
            return {**nothing("shortfall", n, m), **nothing("capability", n, m)}
        can, weight = self.profiles(pool), self._weight()
        lack = need.mean[:, None, :] - can  # [n, m, K]
        short = np.maximum(lack, 0.0) @ weight
        assert need.std is not None
        doubt = np.repeat(np.sqrt(need.std**2 @ weight**2)[:, None], len(pool), axis=1)
        able = np.repeat((can @ weight)[None], len(queries), axis=0)
        coarse = np.sqrt((self.high_ - self.low_) ** 2 / 12 @ weight**2)
        return {"shortfall": Estimate(short, doubt), "capability": Estimate(able, np.full_like(able, coarse))}

    def _weight(self) -> Array:
        """[K], sums to 1."""
        given = np.array([1.0 if self.weights is None else self.weights.get(k, 0.0) for k in self.names_])
        weight = given / (self.high_ - self.low_)
        if not weight.sum() > 0:
            raise ConfigError("weights", got=self.weights, expected=f"one above 0 among {', '.join(self.names_)}")
        normal: Array = weight / weight.sum()
        return normal

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.heads_ is None:
            raise NotFittedError(self)
        names = ("label", "dimensions", "weights", "l2")
        params = {name: getattr(self, name) for name in names} | {"band": list(self.band), "heads": self.heads_}
        params |= {"names": self.names_, "candidates": list(self.seen_)}
        bands = np.stack([self.low_, self.high_, self.weakest_, self.strongest_])
        seen = np.array(list(self.seen_.values()), dtype=float).reshape(len(self.seen_), len(self.names_))
        return params, {"bands": bands, "seen": seen}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(
            params["label"], params["dimensions"], weights=params["weights"], band=params["band"], l2=params["l2"]
        )
        router.heads_, router.names_ = params["heads"], list(params["names"])
        k, candidates = len(router.names_), params["candidates"]
        bands = check_shape("bands", np.asarray(arrays["bands"], float), (4, k))
        router.low_, router.high_, router.weakest_, router.strongest_ = bands
        seen = check_shape("seen", np.asarray(arrays["seen"], float), (len(candidates), k))
        router.seen_ = dict(zip(candidates, seen, strict=True))
        return router


def needs_from(outcomes: Outcomes, dimension: Array, names: Sequence[str]) -> Array:
    """Labels of needs from outcomes, [n, K] in 0..1; NaN for a query nobody was seen to answer.

    A query needs as much of its own dimension as the share of candidates that fail it, and nothing of the others.
    dimension: [n] names. The candidates may be others than those routed to.
    """
    y, seen = observed(outcomes, "quality")
    count = seen.sum(axis=1)
    fails = np.where(count > 0, 1.0 - y.sum(axis=1) / np.maximum(count, 1), np.nan)
    return np.where(dimension[:, None] == np.array(names), fails[:, None], np.where(count[:, None] > 0, 0.0, np.nan))


def means_by(outcomes: Outcomes, dimension: Array, names: Sequence[str]) -> dict[str, Array]:
    """Candidate id -> mean quality in each dimension [K], drawn to its overall mean; only of those with outcomes."""
    y, seen = observed(outcomes, "quality")
    found = {}
    for j, candidate in enumerate(outcomes.pool):
        if seen[:, j].any():
            overall = y[:, j].sum() / seen[:, j].sum()
            inside = [(dimension == name) & seen[:, j] for name in names]
            found[candidate.id] = np.array([(y[i, j].sum() + SHRINK * overall) / (i.sum() + SHRINK) for i in inside])
    return found
