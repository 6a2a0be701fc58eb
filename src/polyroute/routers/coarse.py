"""First which field, then who in it: a coarse router opens a few specialists, and only they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.protocols import Router
from polyroute.routers.linear import Linear
from polyroute.routers.rows import embeddings, nothing, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

MERGES = ("product", "max_conf")


class CoarseToFine:
    """Estimate a metric by the specialist of each candidate's field, for the k fields that a coarse router prefers.

    fields: candidate id -> field. `fit` teaches the coarse router which fields have a good candidate (the best outcome
    among a field's candidates) and each specialist on the queries where its field had one; `coarse` and `specialist`
    are the kinds they are made of, both with the same parameters as given. A candidate of a field not opened is worth
    0. merge: "max_conf" takes a specialist's word as it is; "product" weighs it by how sure the field is. The rule of
    the source is not published (inferred). Whatever specialists know, recall of the true field at k bounds the rest.
    Source: MulVul's router and detectors, without the language models.
    """

    def __init__(
        self,
        fields: Mapping[str, str],
        k: int = 3,
        merge: str = "product",
        metric: str = "quality",
        coarse: Router | None = None,
        specialists: Mapping[str, Router] | None = None,
    ):
        if k < 1:
            raise ConfigError("k", got=k, expected="1 or more fields")
        if merge not in MERGES:
            raise ConfigError("merge", got=merge, expected=" or ".join(map(repr, MERGES)))
        self.fields, self.k, self.merge, self.metric = dict(fields), k, merge, metric
        self.names = sorted(set(self.fields.values()))
        self.coarse, self.specialists = coarse, dict(specialists or {})
        self.fitted_: list[str] | None = None  # fields with a fitted specialist

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        embeddings(outcomes.queries)
        if not seen.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        at = self._field_of(outcomes.pool)
        best, known = np.zeros((len(y), len(self.names))), np.zeros((len(y), len(self.names)), dtype=bool)
        for f in range(len(self.names)):
            own = at == f
            known[:, f] = seen[:, own].any(axis=1)
            best[:, f] = np.where(seen[:, own], y[:, own], 0.0).max(axis=1, initial=0.0)
        values = {self.metric: np.where(known, best, np.nan)}
        table = Outcomes(outcomes.queries, [Candidate(name, "field") for name in self.names], values, known)
        self.coarse = (Linear(self.metric, "ridge") if self.coarse is None else self.coarse).fit(table)
        self.fitted_ = []
        for f, name in enumerate(self.names):
            own = [c.id for c, j in zip(outcomes.pool, at, strict=True) if j == f]
            rows = known[:, f] & (best[:, f] > 0)
            rows = rows if rows.any() else known[:, f]
            if own and rows.any():
                specialist = self.specialists.get(name, Linear(self.metric, "ridge"))
                self.specialists[name] = specialist.fit(outcomes.take(rows).among(own))
                self.fitted_.append(name)
        return self

    def _field_of(self, pool: Sequence[Candidate]) -> Array:
        """[m] int, the field of each candidate. Raises: UnknownCandidateError for one without a field."""
        if missing := [c.id for c in pool if c.id not in self.fields]:
            raise UnknownCandidateError(missing, known=self.fields)
        return np.array([self.names.index(self.fields[c.id]) for c in pool], dtype=np.intp)

    def opened(self, queries: Sequence[Query]) -> Array:
        """[n, fields] bool: the k fields asked for each query."""
        score = self._coarse(queries).mean
        place = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)
        return place < self.k

    def _coarse(self, queries: Sequence[Query]) -> Estimate:
        """The coarse estimate [n, fields]; 0 for a field that had no outcomes."""
        if self.fitted_ is None or self.coarse is None:
            raise NotFittedError(self)
        pool = [Candidate(name, "field") for name in self.fitted_]
        found = self.coarse.predict(queries, pool)[self.metric]
        columns = [self.names.index(name) for name in self.fitted_]
        mean, std = np.zeros((len(queries), len(self.names))), np.zeros((len(queries), len(self.names)))
        mean[:, columns] = found.mean
        std[:, columns] = 0.0 if found.std is None else found.std
        return Estimate(mean, std)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.fitted_ is None:
            raise NotFittedError(self)
        at = self._field_of(pool)
        coarse = self._coarse(queries)
        if not len(queries) or not len(pool):
            return nothing(self.metric, len(queries), len(pool))
        open_, field_doubt = self.opened(queries), np.asarray(coarse.std)
        mean, std = np.zeros((len(queries), len(pool))), np.zeros((len(queries), len(pool)))
        for f, name in enumerate(self.names):
            columns = np.flatnonzero(at == f)
            if not len(columns):
                continue
            if name not in self.specialists:
                raise UnknownCandidateError([pool[int(j)].id for j in columns], known=self.fields)
            fine = self.specialists[name].predict(queries, [pool[int(j)] for j in columns])[self.metric]
            weight = coarse.mean[:, f : f + 1] if self.merge == "product" else np.ones((len(queries), 1))
            rows = open_[:, f : f + 1]
            mean[:, columns] = np.where(rows, weight * fine.mean, 0.0)
            doubt = np.zeros(fine.mean.shape) if fine.std is None else fine.std
            std[:, columns] = np.where(rows, weight * doubt, field_doubt[:, f : f + 1])
        return {self.metric: Estimate(mean, std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.fitted_ is None:
            raise NotFittedError(self)
        params = {name: getattr(self, name) for name in ("fields", "k", "merge", "metric", "coarse", "specialists")}
        return params | {"fitted": self.fitted_}, {}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(**{name: value for name, value in params.items() if name != "fitted"})
        router.fitted_ = list(params["fitted"])
        return router
