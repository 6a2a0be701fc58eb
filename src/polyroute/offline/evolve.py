"""Prompts that get better: one model changes them, another one, never the same, judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from polyroute.errors import ConfigError, EstimateError
from polyroute.types import Array, Rng

P = TypeVar("P")


class Evolved(NamedTuple, Generic[P]):
    """The prompt that came out best, and how it came to that."""

    prompt: P
    score: float  # mean over all items it was judged on
    history: list[float]  # best mean of each generation
    judged: int  # calls of the executor, one a prompt and item


def evolve_prompt(
    seed: P,
    mutate: Callable[[P, Sequence[int]], P],
    score: Callable[[P, Array], Array],
    num_items: int,
    *,
    generations: int = 10,
    population: int = 8,
    elite: int = 2,
    minibatch: int = 32,
    rng: Rng,
) -> Evolved[P]:
    """Keep the best of a population over generations of changed prompts.

    mutate: the generator, (prompt, items it failed on) -> another prompt. score: the executor, (prompt, items [b] int)
    -> [b] scores 0..1; let it be another model than the generator, or a prompt is bred for the judge's habits. In each
    generation the elite's children are judged on a fresh minibatch and so are the prompts kept; a prompt's score is its
    mean over every item it was ever judged on. num_items: size of the development set the items are drawn from; the
    number of labels to return is not tuned here and never on test data.
    Raises: EstimateError for a score that is no number. Source: MulVul's cross-model prompt evolution (loop inferred).
    """
    if not (1 <= elite <= population and minibatch >= 1 and generations >= 0 and num_items >= 1):
        raise ConfigError("elite, population, minibatch, generations", got=(elite, population, minibatch, generations),
                          expected="1 <= elite <= population, 1 or more items")  # fmt: skip
    kept: list[tuple[P, list[float], list[int]]] = [(seed, [], [])]  # prompt, scores, items failed on
    history, judged = [], 0
    for _ in range(generations + 1):
        items = rng.choice(num_items, min(minibatch, num_items), replace=False)
        for prompt, scores, failures in kept:
            found = np.asarray(score(prompt, items), dtype=float)
            if found.shape != items.shape or not np.isfinite(found).all():
                raise EstimateError("score of a prompt", row=len(scores), column=0, got=float(found.sum()))
            judged += len(items)
            scores.extend(found.tolist())
            failures[:] = [int(item) for item, one in zip(items, found, strict=True) if one < 0.5]
        kept.sort(key=lambda one: -float(np.mean(one[1])))
        history.append(float(np.mean(kept[0][1])))
        if len(history) == generations + 1:
            break
        parents = kept[:elite]
        children = [parents[i % len(parents)] for i in range(population - len(parents))]
        kept = parents + [(mutate(prompt, failures), [], []) for prompt, _, failures in children]
    prompt, scores, _ = kept[0]
    return Evolved(prompt, float(np.mean(scores)), history, judged)
