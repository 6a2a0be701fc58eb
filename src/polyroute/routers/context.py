"""A query as a few one-hot blocks: what a bandit can learn from with little traffic.

An embedding has hundreds of entries and each would have to be learned for each candidate; a task, a cluster and a bin
of complexity are a dozen. `Contexts` makes them, `Contextual` puts them in the place of the embedding for any router.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.protocols import OnlineRouter, Router
from polyroute.routers.cluster import kmeans
from polyroute.routers.rows import check_shape, embeddings, unit_rows
from polyroute.types import Array, Candidate, Estimates, Outcomes, Query

READ = 4_000  # characters of a text whose complexity is judged
SENTENCE = re.compile(r"[.!?]+(?:\s|$)")
WORD = re.compile(r"[A-Za-z]+")
VOWELS = re.compile(r"[aeiouy]+", re.IGNORECASE)
SMOOTH = 0.1  # similarity by which a nearby cluster may be further away and still weigh 1/e of the nearest
RIDGE = 1.0  # penalty of the task classifier on unit embeddings


class Contexts:
    """One block each for a constant, the task, the cluster and the complexity of a query; width p in all.

    tasks: use task labels given to `fit` (a linear classifier on embeddings guesses them afterwards). num_clusters:
    k-means of the embeddings, 0: none. nearest: how many clusters a query belongs to; above 1 their weights fall with
    distance and their squares sum to 1, so that overlapping clusters do not count certainty twice. bins: cuts of
    complexity (100 - Flesch reading ease). constant: a 1 for what is common to all.
    Source: the context of GreenServ (task 5, cluster 3, complexity 3); its clusters move online, these stay as fitted.
    """

    def __init__(
        self,
        num_clusters: int = 3,
        bins: Sequence[float] = (20.0, 30.0),
        *,
        tasks: bool = True,
        nearest: int = 1,
        constant: bool = True,
        seed: int = 0,
    ):
        if num_clusters < 0 or nearest < 1:
            name, got = ("num_clusters", num_clusters) if num_clusters < 0 else ("nearest", nearest)
            raise ConfigError(name, got=got, expected="a number of clusters, 0 or more (nearest: 1 or more)")
        if list(bins) != sorted(bins):
            raise ConfigError("bins", got=bins, expected="rising cuts of complexity")
        self.num_clusters, self.bins, self.tasks = num_clusters, tuple(float(cut) for cut in bins), tasks
        self.nearest, self.constant, self.seed = nearest, constant, seed
        self.centres_: Array = None  # [c, d] float32 unit rows; [0, d] without clusters

    @property
    def fitted(self) -> bool:
        return self.centres_ is not None

    def fit(self, queries: Sequence[Query], tasks: Sequence[str] | Array | None = None) -> Self:
        """Needs no outcomes. tasks: [n] labels; None: no task block, also with tasks=True."""
        if not queries:
            raise OutcomesError("queries: expected at least one to form contexts, got none.")
        if tasks is not None and len(tasks) != len(queries):
            raise ShapeError("tasks", got=(len(tasks),), expected=(len(queries),))
        x = unit_rows(embeddings(queries))
        rng = np.random.default_rng(self.seed)
        self.centres_ = kmeans(x, self.num_clusters, rng) if self.num_clusters else np.zeros((0, x.shape[1]))
        label = np.asarray(tasks if self.tasks and tasks is not None else [], dtype=str)
        self.names_ = [str(name) for name in np.unique(label)]
        self.weight_ = np.zeros((x.shape[1] + 1, 0))
        if self.names_:
            wide = np.hstack([x, np.ones((len(x), 1))]).astype(float)
            onehot = (label[:, None] == np.array(self.names_)).astype(float)
            penalty = RIDGE * np.eye(wide.shape[1])
            penalty[-1, -1] = 1e-6
            self.weight_ = np.linalg.solve(wide.T @ wide + penalty, wide.T @ onehot)
        return self

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """(name, width) of each block, in order; widths sum to p."""
        if not self.fitted:
            raise NotFittedError(self)
        found = [("constant", int(self.constant)), ("task", len(self.names_)), ("cluster", len(self.centres_))]
        return [*found, ("complexity", len(self.bins) + 1 if self.bins else 0)]

    def __call__(self, queries: Sequence[Query]) -> Array:
        """Contexts [n, p] float32."""
        widths = [width for _, width in self.blocks]
        # float64, so that rounding does not depend on how many are encoded at once and replicas agree to the last bit
        x = unit_rows(embeddings(queries, self.centres_.shape[1]).astype(float))
        n = len(queries)
        parts = [np.ones((n, widths[0])), onehots(self.task_of(x), widths[1]) if self.names_ else np.zeros((n, 0))]
        parts.append(memberships(x @ self.centres_.T, self.nearest) if widths[2] else np.zeros((n, 0)))
        if self.bins:
            level = np.searchsorted(self.bins, [100.0 - reading_ease(q.text) for q in queries], side="right")
            parts.append(onehots(level, widths[3]))
        return np.hstack(parts).astype(np.float32)

    def task_of(self, x: Array) -> Array:
        """The guessed task of unit rows x [n, d]: [n] int, an index into `names_`."""
        index: Array = (x @ self.weight_[:-1] + self.weight_[-1]).argmax(axis=1)
        return index

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if not self.fitted:
            raise NotFittedError(self)
        names = ("num_clusters", "bins", "tasks", "nearest", "constant", "seed")
        params = {name: getattr(self, name) for name in names} | {"bins": list(self.bins), "names": self.names_}
        return params, {"centres": self.centres_, "weight": self.weight_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        contexts = cls(**{name: value for name, value in params.items() if name != "names"})
        contexts.names_ = list(params["names"])
        contexts.centres_ = check_shape("centres", np.asarray(arrays["centres"]), (None, None))
        width = (contexts.centres_.shape[1] + 1, len(contexts.names_))
        contexts.weight_ = check_shape("weight", np.asarray(arrays["weight"]), width)
        return contexts


class Contextual:
    """Any router on contexts in the place of embeddings.

    `fit` fits the contexts too (tasks are the table's labels of that name), unless they came fitted: then they stay,
    and the router may start with no outcome at all if it can. Queries keep everything but their embedding.
    """

    def __init__(self, router: Router, contexts: Contexts, *, tasks: str = "dataset", keep: bool | None = None):
        self.router, self.contexts, self.tasks = router, contexts, tasks
        self.keep = contexts.fitted if keep is None else keep

    @property
    def metric(self) -> Any:
        """What the router inside learns; see `update_all`."""
        return getattr(self.router, "metric", None)

    def fit(self, outcomes: Outcomes) -> Self:
        if not self.keep:
            self.contexts.fit(outcomes.queries, outcomes.labels.get(self.tasks))
        self.router.fit(replace(outcomes, queries=self.encoded(outcomes.queries)))
        return self

    def update(self, outcomes: Outcomes) -> None:
        """Pass the outcomes on, if the router learns online."""
        if not self.contexts.fitted:
            raise NotFittedError(self)
        if isinstance(self.router, OnlineRouter):
            self.router.update(replace(outcomes, queries=self.encoded(outcomes.queries)))

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        return self.router.predict(self.encoded(queries), pool)

    def encoded(self, queries: Sequence[Query]) -> list[Query]:
        """The queries with their context as embedding."""
        if not self.contexts.fitted:
            raise NotFittedError(self)
        context = self.contexts(queries)
        return [
            Query(q.id, q.text, row, q.needs, q.num_tokens, q.max_output)
            for q, row in zip(queries, context, strict=True)
        ]

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        params, arrays = self.contexts.state()
        return {"router": self.router, "contexts": params, "tasks": self.tasks, "keep": self.keep}, arrays

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        contexts = Contexts.from_state(params["contexts"], arrays)
        return cls(params["router"], contexts, tasks=params["tasks"], keep=params["keep"])


def onehots(index: Array, width: int) -> Array:
    """[n, width] float: 1 at index [n]."""
    return np.eye(width)[index]


def memberships(similarity: Array, nearest: int) -> Array:
    """Weights [n, c] of the `nearest` most similar clusters, their squares summing to 1; 0 elsewhere."""
    n, c = similarity.shape
    k = min(nearest, c)
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(similarity, index, axis=1)
    weight = np.exp((near - near[:, :1]) / SMOOTH)
    found = np.zeros((n, c))
    np.put_along_axis(found, index, weight / np.sqrt((weight**2).sum(axis=1, keepdims=True)), axis=1)
    return found


def reading_ease(text: str) -> float:
    """Flesch reading ease: about 100 for a child's sentence, 30 for a hard one, below 0 for worse; 100 for no words.

    Syllables are counted as runs of vowels, a silent last e left out. Only the first `READ` characters are read.
    Source: Flesch 1948 (doi:10.1037/h0057532).
    """
    words = WORD.findall(text[:READ])
    if not words:
        return 100.0
    sentences = max(len(SENTENCE.findall(text[:READ])), 1)
    syllables = sum(
        max(len(VOWELS.findall(w)) - (len(w) > 2 and w[-1] in "eE" and w[-2] not in "lL"), 1) for w in words
    )
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
