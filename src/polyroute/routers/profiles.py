"""Profiles of candidates as data: what a router may know of a model besides its name, built in four ways that mix.

The four axes of RouteProfile: organisation (flat facts or the graph of models, queries and tasks), representation (text
or vector), depth (0: the model's own outcomes; more: rounds of message passing), learning (none here; the trained
form is nn/encoders:TwoTower, which reads these).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.routers.rows import embeddings, observed, unit_rows
from polyroute.types import Array, Outcomes

KINDS = ("flat", "graph")


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What one candidate's outcomes say, before any embedding."""

    count: int  # outcomes seen
    level: float  # mean score, 0..1
    by_task: Mapping[str, float] = field(default_factory=dict)  # task -> mean score


class Graph(NamedTuple):
    """Candidates, queries and tasks; edges are how much better than the query's mean a candidate did."""

    queries: Array  # [n, d] unit rows, centred
    edges: Array  # [n, m] advantage, 0 where not seen
    seen: Array  # [n, m] bool
    task: Array  # [n] int
    tasks: list[str]


class Profiles:
    """A vector and a text for each candidate, from its description (flat) or from the outcome graph.

    kind: "flat", the embedding of the given text alone; "graph", aggregated from outcomes. depth, for "graph": 0, the
    mean of the queries it answered weighted by its advantage; each round more lets queries take in their task and the
    candidates and pass that back, `X <- mean over relations of D^-1/2 A D^-1/2 X`. Many rounds make all profiles alike
    (`likeness` tells). center: subtract the mean query and weigh by the score less the query's mean over candidates;
    without it every profile is the mean query. `extend` adds a candidate from a few outcomes and rebuilds nothing.
    Fit on training queries only. Source: RouteProfile (training-free profiles; the normalisation is (inferred)).
    """

    def __init__(self, kind: str = "graph", depth: int = 0, center: bool = True, kappa: float = 20.0):
        if kind not in KINDS:
            raise ConfigError("kind", got=kind, expected=f"one of {', '.join(KINDS)}")
        if depth < 0:
            raise ConfigError("depth", got=depth, expected="a number of rounds, 0 or more")
        self.kind, self.depth, self.center, self.kappa = kind, depth, center, kappa
        self.graph_: Graph | None = None

    def fit(
        self, outcomes: Outcomes, texts: Mapping[str, str] | None = None, vectors: Mapping[str, Array] | None = None
    ) -> Self:
        """texts: candidate id -> description, kept as it is. vectors: candidate id -> its embedding [d], for "flat".

        Tasks are labels["dataset"] where the table has it. Raises: UnknownCandidateError for "flat" without a vector.
        """
        y, seen = observed(outcomes, "quality")
        if not seen.any():
            raise OutcomesError("values['quality']: expected at least one outcome to build profiles from, got none.")
        x = unit_rows(embeddings(outcomes.queries)).astype(float)
        self.mean_ = x.mean(axis=0) if self.center else np.zeros(x.shape[1])
        label = np.asarray(outcomes.labels.get("dataset", np.full(len(x), "all")), dtype=str)
        names, task = np.unique(label, return_inverse=True)
        self.ids_, self.texts_ = [c.id for c in outcomes.pool], dict(texts or {})
        self.expected_ = _ridge(x - self.mean_, y, seen)  # what is expected of a query: the newcomers' baseline
        self.graph_ = Graph(x - self.mean_, self._edges(y, seen), seen, task, names.tolist())
        self.history_ = {c: _history(y[:, j], seen[:, j], label) for j, c in enumerate(self.ids_)}
        if self.kind == "flat":
            if missing := [c for c in self.ids_ if c not in (vectors or {})]:
                raise UnknownCandidateError(missing, known=vectors or {})
            assert vectors is not None
            self.vectors_ = np.stack([np.asarray(vectors[c], dtype=float) - self.mean_ for c in self.ids_])
        else:
            self.vectors_ = self._aggregate(self.graph_)
        return self

    def _edges(self, y: Array, seen: Array) -> Array:
        """[n, m] score less the query's mean over the candidates that answered it; the score itself uncentred."""
        if not self.center:
            return np.where(seen, y, 0.0)
        mean = np.where(seen, y, 0.0).sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
        return np.where(seen, y - mean, 0.0)

    def _aggregate(self, graph: Graph) -> Array:
        """[m, d] profiles after the rounds asked for."""
        weight = graph.edges - graph.edges.sum(axis=0) / np.maximum(graph.seen.sum(axis=0), 1) * graph.seen
        if not self.center:
            weight = graph.edges
        own: Array = weight.T @ graph.queries / (graph.seen.sum(axis=0) + self.kappa)[:, None]
        if not self.depth:
            return own
        positive = np.where(graph.seen, _unit_range(graph.edges), 0.0)  # [n, m] an adjacency has no negative entries
        member = np.eye(len(graph.tasks))[graph.task]  # [n, t]
        to_model, to_task = _normalised(positive), _normalised(member)
        x = graph.queries
        models, tasks = own, to_task.T @ x
        for _ in range(self.depth):
            x, models, tasks = (to_model @ models + to_task @ tasks) / 2, to_model.T @ x, to_task.T @ x
            x, models, tasks = (unit_rows(part) for part in (x, models, tasks))
        return models

    def vectors(self, candidate_ids: Sequence[str]) -> Array:
        """[m, d] profiles. Raises: UnknownCandidateError for candidates neither fitted nor extended."""
        at = self._columns(candidate_ids)
        vectors: Array = self.vectors_[at]
        return vectors

    def levels(self, candidate_ids: Sequence[str]) -> Array:
        """[m] mean score less what is expected of the queries answered, shrunk."""
        at = self._columns(candidate_ids)
        assert self.graph_ is not None
        return np.array([self.history_[self.ids_[j]].level for j in at])

    def _columns(self, candidate_ids: Sequence[str]) -> list[int]:
        if self.graph_ is None:
            raise NotFittedError(self)
        column = {c: j for j, c in enumerate(self.ids_)}
        if missing := [c for c in candidate_ids if c not in column]:
            raise UnknownCandidateError(missing, known=column)
        return [column[c] for c in candidate_ids]

    def extend(self, outcomes: Outcomes, text: str = "", vector: Array | None = None) -> Self:
        """Add the one candidate of `outcomes` from a few of its outcomes; profiles of the others stay as they are.

        Its advantage is against what the known candidates lead one to expect of each query. vector: for "flat".
        """
        if self.graph_ is None:
            raise NotFittedError(self)
        if len(outcomes.pool) != 1:
            raise OutcomesError(f"pool: expected the outcomes of one newcomer, got {len(outcomes.pool)} candidates.")
        name = outcomes.pool[0].id
        y, seen = observed(outcomes, "quality")
        rows = seen[:, 0]
        x = unit_rows(embeddings(outcomes.queries, len(self.mean_))).astype(float)[rows] - self.mean_
        gain = y[rows, 0] - np.clip(self.expected_[0] + x @ self.expected_[1:], 0, 1)
        if self.kind == "flat":
            if vector is None:
                raise UnknownCandidateError([name], known=self.ids_)
            new = np.asarray(vector, dtype=float) - self.mean_
        else:
            weight = gain - gain.mean() if self.center and len(gain) else y[rows, 0]
            new = weight @ x / (rows.sum() + self.kappa)
        label = np.asarray(outcomes.labels.get("dataset", np.full(len(rows), "all")), dtype=str)
        if name not in self.ids_:
            self.ids_.append(name)
            self.vectors_ = np.vstack([self.vectors_, new])
        else:
            self.vectors_[self.ids_.index(name)] = new
        self.history_[name] = _history(y[:, 0], rows, label)
        self.texts_[name] = text or self.texts_.get(name, "")
        return self

    def text(self, candidate_id: str, best: int = 3) -> str:
        """The profile as a person or a language model reads it: the description, the level, what it does best."""
        self._columns([candidate_id])
        history = self.history_[candidate_id]
        ordered = sorted(history.by_task, key=lambda task: self._lead(candidate_id, task), reverse=True)
        told = ", ".join(f"{task} {history.by_task[task]:.2f}" for task in ordered[:best])
        own = self.texts_.get(candidate_id, "").strip()
        measured = f"Mean score {history.level:.2f} over {history.count} answers; ahead of the others at: {told}."
        return f"{own} {measured}".strip()

    def _lead(self, candidate_id: str, task: str) -> float:
        rivals = [h.by_task[task] for c, h in self.history_.items() if c != candidate_id and task in h.by_task]
        return self.history_[candidate_id].by_task[task] - (float(np.mean(rivals)) if rivals else 0.0)

    def likeness(self) -> float:
        """Mean cosine between the profiles of two candidates: near 1, they have collapsed into one."""
        unit = unit_rows(self.vectors(self.ids_))
        m = len(unit)
        return float(((unit @ unit.T).sum() - m) / (m * (m - 1))) if m > 1 else 1.0


def _history(y: Array, seen: Array, label: Array) -> History:
    tasks = np.unique(label[seen])
    level = float(y[seen].mean()) if seen.any() else 0.0
    return History(
        count=int(seen.sum()), level=level, by_task={str(t): float(y[seen & (label == t)].mean()) for t in tasks}
    )


def _ridge(x: Array, y: Array, seen: Array, l2: float = 10.0) -> Array:
    """[1 + d] the mean score of a query over the candidates that answered it, as a ridge on its embedding."""
    count = seen.sum(axis=1)
    rows = count > 0
    mean = np.where(seen, y, 0.0).sum(axis=1)[rows] / count[rows]
    phi = np.hstack([np.ones((rows.sum(), 1)), x[rows]])
    penalty = np.diag(np.append(1e-6, np.full(x.shape[1], l2)))
    head: Array = np.linalg.solve(phi.T @ phi + penalty, phi.T @ mean)
    return head


def _unit_range(edges: Array) -> Array:
    low, high = edges.min(), edges.max()
    return (edges - low) / (high - low) if high > low else np.ones_like(edges)


def _normalised(adjacency: Array) -> Array:
    """D^-1/2 A D^-1/2 for a bipartite adjacency."""
    rows, cols = adjacency.sum(axis=1, keepdims=True), adjacency.sum(axis=0, keepdims=True)
    normal: Array = adjacency / np.sqrt(np.maximum(rows, 1e-12)) / np.sqrt(np.maximum(cols, 1e-12))
    return normal
