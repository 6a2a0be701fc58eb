"""Proof of system 9, Composition of Experts: a kept set with one expert a category beats the best single that fits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from polyroute.offline.subset import best_subset
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out, sizes_of
from polyroute.recipes.composition import CompositionOfExperts
from polyroute.types import Outcomes

BUDGETS = (9.0, 16.0, 25.0, 51.0, 76.0, 120.0)  # billions of parameters kept at once

SHOWN = ("composition", "single", "broken", "active")


def one_seed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    """Mean score on the held-out queries for each budget: the composition, the best single, a broken composition."""
    train, test = held_out(outcomes, seed)
    rng = np.random.default_rng(seed)
    sizes = sizes_of(outcomes)
    size = np.array([sizes[c.id] for c in outcomes.pool])
    rows = np.arange(len(test))
    labels = train.labels["dataset"]
    found: dict[str, float] = {}
    for budget in BUDGETS:
        fits = np.flatnonzero(size <= budget)
        single = fits[train.values["quality"][:, fits].mean(axis=0).argmax()]
        coe = CompositionOfExperts(sizes, budget).fit(train, labels)
        found[f"value {budget:g}"] = coe.chosen_.value
        weights = np.bincount(np.unique(labels, return_inverse=True)[1]) / len(labels)
        greedy = best_subset(coe.scores_, weights, size, budget, exact=False)
        found[f"over greedy {budget:g}"] = coe.chosen_.value - greedy.value
        broken = CompositionOfExperts(sizes, budget).fit(train, rng.permutation(labels))
        quality = test.values["quality"]
        found[f"composition {budget:g}"] = float(quality[rows, coe.choose(test.queries)].mean())
        found[f"single {budget:g}"] = float(quality[:, single].mean())
        found[f"broken {budget:g}"] = float(quality[rows, broken.choose(test.queries)].mean())
        found[f"active {budget:g}"] = float(size[coe.choose(test.queries)].mean())
    return found


def prove(seed: int) -> Proof:
    """Five seeded splits of LLMRouter's nine models, categories are its fourteen tasks."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 5)
    found = [one_seed(outcomes, s) for s in seeds]
    room = BUDGETS[1:]  # a budget for one model leaves nothing to compose

    def gains(name: str) -> list[float]:
        return [100 * float(np.mean([f[f"{name} {b:g}"] - f[f"single {b:g}"] for b in room])) for f in found]

    exact = min(f[f"over greedy {b:g}"] for f in found for b in BUDGETS)
    grows = min(f[f"value {b:g}"] - f[f"value {a:g}"] for f in found for a, b in pairwise(BUDGETS))
    worst = min(exact, grows)
    checks = Effect(
        name="the exact set is never worse than the greedy one and never worsens with room", value=worst, low=worst,
        high=worst, unit="score", margin=-1e-9,
    )  # fmt: skip
    rows = [
        {
            "budget": f"{b:g}B",
            **{name: float(np.mean([f[f"{name} {b:g}"] for f in found])) for name in SHOWN},
        }
        for b in BUDGETS
    ]
    return Proof(
        id=9,
        name="Composition of Experts",
        claim="one expert a category from a set kept under a size budget scores more than the best single that fits",
        baseline="best single model within the same budget, chosen on the training queries",
        effects=[effect_over_seeds("mean score over budgets of 16B to 120B", gains("composition"), "points"), checks],
        falsifier=effect_over_seeds("the same with category labels shuffled", gains("broken"), "points"),
        seeds=list(seeds),
        rows=rows,
    )
