"""System 9, Composition of Experts (arXiv:2412.01868): prompt -> category -> one expert of a set kept under a budget.

A category router (nearest neighbours over labelled prompts) and an integer programme over measured scores. Scores are
shrunk to each model's mean, because the set is chosen on the data the scores come from. Where the category is unsure
the robust variant sends the query to a generalist. Parts: routers/knn, offline/subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.errors import NotFittedError, OutcomesError
from polyroute.offline.subset import Subset, best_subset
from polyroute.routers.knn import KNN
from polyroute.types import Array, Candidate, Outcomes, Query


class CompositionOfExperts:
    """Chooses the set once and then one expert a category.

    sizes: candidate id -> size in the unit of `budget`. kappa: pseudo-queries at the model's mean in each category.
    robust: below this share of neighbours in one category the generalist (best kept overall) answers; 0: never.
    """

    def __init__(
        self, sizes: dict[str, float], budget: float, *, k: int = 20, kappa: float = 20.0, robust: float = 0.0
    ):
        self.sizes, self.budget, self.k, self.kappa, self.robust = sizes, budget, k, kappa, robust

    def fit(self, outcomes: Outcomes, categories: Sequence[str] | Array) -> Self:
        """outcomes: complete quality. categories: [n] a label for each query."""
        quality = outcomes.values["quality"]
        if not np.isfinite(quality).all():
            raise OutcomesError("values['quality']: expected every candidate's outcome on every query, got gaps.")
        self.names_, label = np.unique(np.asarray(categories, dtype=str), return_inverse=True)
        onehot = np.eye(len(self.names_))[label]  # [n, c]
        classes = [Candidate(str(name), kind="category") for name in self.names_]
        seen = np.ones(onehot.shape, dtype=bool)
        self.router_ = KNN(self.k, 0.0).fit(Outcomes(outcomes.queries, classes, {"quality": onehot}, seen))
        self.classes_ = classes
        count = onehot.sum(axis=0)
        mean = quality.mean(axis=0)
        self.scores_ = (onehot.T @ quality + self.kappa * mean) / (count + self.kappa)[:, None]  # [c, m]
        sizes = np.array([self.sizes[c.id] for c in outcomes.pool])
        self.chosen_: Subset = best_subset(self.scores_, count / count.sum(), sizes, self.budget)
        self.generalist_ = max(self.chosen_.kept, key=lambda j: mean[j])
        return self

    def choose(self, queries: Sequence[Query]) -> Array:
        """[n] column of the expert for each query."""
        if not hasattr(self, "chosen_"):
            raise NotFittedError(self)
        share = self.router_.predict(queries, self.classes_)["quality"].mean  # [n, c] share of neighbours
        expert: Array = self.chosen_.mapping[share.argmax(axis=1)]
        return np.where(share.max(axis=1) < self.robust, self.generalist_, expert)
