"""The vocabulary: what is routed, where it may go, what that would yield, and what it did yield.

Letters used for shapes everywhere: n queries, m candidates, k chosen, d width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polyroute.errors import ConfigError, ShapeError, UnknownCandidateError, UnknownNameError

Array: TypeAlias = Any  # numpy in routers and policies; any array-API library in kernels
Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Something to route: a request, a retrieval query, a reasoning step."""

    id: str
    text: str = ""
    embedding: Array | None = None  # [d] float32, from one named featuriser
    needs: frozenset[str] = frozenset()  # capabilities: {"vision", "tools"}
    num_tokens: int | None = None  # prompt tokens; None: not counted
    max_output: int | None = None  # completion tokens the caller allows; None: no limit given


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What is known of a candidate before it is tried."""

    price_in: float = 0.0  # USD per 1e6 prompt tokens
    price_out: float = 0.0  # USD per 1e6 completion tokens
    context: int | None = None  # tokens it can read and write together; None: not known
    offers: frozenset[str] = frozenset()  # capabilities; None is not a set: an empty set offers nothing special
    embedding: Array | None = None  # [d] float32
    ability: Mapping[str, float] = field(default_factory=dict)  # skill -> logit; see routers/irt.py
    ability_std: float | None = None  # doubt about `ability`, logits; None: not measured
    region: str | None = None  # where the data goes; None: not known
    tokens_per_s: float | None = None  # generation speed; None: not known
    first_token_s: float | None = None  # seconds until the first token; None: not known


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place a query may be sent to."""

    id: str
    kind: str = "model"  # model agent instance knowledge memory tool
    profile: Profile = Profile()


class Estimate(NamedTuple):
    """One metric for n queries and m candidates, in the metric's own unit."""

    mean: Array  # [n, m]
    std: Array | None = None  # [n, m], same unit; None: the router does not know


Estimates: TypeAlias = Mapping[str, Estimate]  # merge routers with {**quality, **cost, **latency}


@dataclass(frozen=True, slots=True)
class Objective:
    """What a unit of each metric is worth, in units of quality."""

    weights: Mapping[str, float]  # utility per unit: {"quality": 1.0, "cost": -150.0}

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("weights", got=self.weights, expected="the weight of at least one metric")
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ConfigError(f"weights.{name}", got=weight, expected="a finite number")

    def utility(self, estimates: Estimates) -> Array:
        """Expected utility [n, m]. Raises: UnknownNameError if a weighed metric was not estimated."""
        total: Array = None
        for name, weight in self.weights.items():
            if name not in estimates:
                raise UnknownNameError("metric", name, estimates)
            part = weight * estimates[name].mean
            total = part if total is None else total + part
        return total


class Selection(NamedTuple):
    """What every selection kernel and policy returns, at every scale."""

    index: Array  # [n, k] int, best first; a policy that found fewer than k puts -1 in the places left
    weight: Array  # [n, k] scores of the chosen; a gate or mixture normalises them
    propensity: Array | None = None  # [n, k] P(chosen); None: deterministic


@dataclass(frozen=True, slots=True)
class Decision:
    """One row of a Selection, with names; this is logged before its outcome is known."""

    query_id: str
    candidate_ids: tuple[str, ...]
    propensity: float = 1.0
    because: str = ""
    prompt: str = ""  # what to ask where that is not the query itself: a flow's sub-question; not logged


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one decision yielded."""

    decision: Decision
    metrics: Mapping[str, float]  # {"quality": 0..1, "cost": USD, "latency": seconds}
    text: str = ""  # the answer, where a flow reads it; not logged


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """A table of outcomes. A full table and a bandit log are one thing, masked."""

    queries: Sequence[Query]  # n
    pool: Sequence[Candidate]  # m
    values: Mapping[str, Array]  # metric -> [n, m] float; NaN where not observed
    observed: Array  # [n, m] bool; a log has one True per row
    labels: Mapping[str, Array] = field(default_factory=dict)  # name -> [n]: dataset, split, group
    propensity: Array | None = None  # [n] P(logged choice); None: a full table

    def __post_init__(self) -> None:
        shape = (len(self.queries), len(self.pool))
        for name, values in self.values.items():
            if np.shape(values) != shape:
                raise ShapeError(f"values[{name!r}]", got=np.shape(values), expected=shape)
        if np.shape(self.observed) != shape:
            raise ShapeError("observed", got=np.shape(self.observed), expected=shape)
        for name, column in {**self.labels, "propensity": self.propensity}.items():
            if column is not None and np.shape(column) != shape[:1]:
                raise ShapeError(f"labels[{name!r}]", got=np.shape(column), expected=shape[:1])

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: Array) -> Outcomes:
        """The same table with some queries only. rows: [r] int, or [n] bool."""
        rows = np.asarray(rows)
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Outcomes(
            [self.queries[int(i)] for i in index],
            self.pool,
            {name: values[index] for name, values in self.values.items()},
            self.observed[index],
            {name: column[index] for name, column in self.labels.items()},
            None if self.propensity is None else self.propensity[index],
        )

    def among(self, candidate_ids: Sequence[str]) -> Outcomes:
        """The same table with some candidates only, in the order given."""
        column = {candidate.id: j for j, candidate in enumerate(self.pool)}
        if missing := [c for c in candidate_ids if c not in column]:
            raise UnknownCandidateError(missing, known=column)
        keep = [column[c] for c in candidate_ids]
        return Outcomes(
            self.queries,
            [self.pool[j] for j in keep],
            {name: values[:, keep] for name, values in self.values.items()},
            self.observed[:, keep],
            self.labels,
            self.propensity,
        )
