"""Proof of system 45, V0: a model never trained on is ranked by a few of its answers better than by any part alone.

Claim: leave one model out of LLMRouter's nine, describe it by 32, 128 or 256 graded answers, and the in-context value
ranks that model's held-out prompts better (AUC within the model) than each of: the difficulty prior of the other models
alone; nearest neighbours over the same answers (the better of k = 10 and 30 on the held-out prompts, each time); the
same kernel ridge without the prior. And rollouts given out by expected values (true logits blurred by a std of 0.7)
are worth more than equal ones, simulated.
Falsifier: the answers of the context shuffled over its prompts; then it must not beat the difficulty prior.
Said beforehand: on RouterDC's seven models of one size the prior is nearly all there is; those rows are shown, no claim
is made of them. At 1,024 answers neighbours catch up; that row is shown too.
"""

from __future__ import annotations

import numpy as np

from polyroute.kernels.rollouts import allocate_rollouts, group_utility
from polyroute.offline.ranking import auc
from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out
from polyroute.recipes.value_zero import describe, value_zero
from polyroute.routers.incontext import InContext
from polyroute.routers.knn import KNN
from polyroute.types import Array, Outcomes

SIZES = (32, 128, 256, 1024)
CLAIMED = (32, 128, 256)
WAYS = ("in context", "difficulty prior", "neighbours", "ridge alone", "shuffled")


def one_seed(outcomes: Outcomes, seed: int) -> dict[tuple[str, int], float]:
    """Mean AUC over the models left out, by way and context size."""
    train, test = held_out(outcomes, seed)
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, int], list[float]] = {}
    for j, newcomer in enumerate(outcomes.pool):
        base = value_zero().fit(train.among([c.id for c in outcomes.pool if c is not newcomer]))
        y = test.values["quality"][:, j]
        order = rng.permutation(len(train))
        for size in SIZES:
            context = train.take(order[:size]).among([newcomer.id])
            given = context.values["quality"][:, 0]
            rows = {
                "in context": described(base, context, given),
                "shuffled": described(base, context, rng.permutation(given)),
                "difficulty prior": base,
                "ridge alone": InContext().fit(context),
            }
            told = {way: router.predict(test.queries, [newcomer])["quality"].mean[:, 0] for way, router in rows.items()}
            for way, predicted in told.items():
                found.setdefault((way, size), []).append(auc(predicted, y))
            near = [KNN(k=k).fit(context).predict(test.queries, [newcomer])["quality"].mean[:, 0] for k in (10, 30)]
            found.setdefault(("neighbours", size), []).append(max(auc(predicted, y) for predicted in near))
    return {key: float(np.mean(values)) for key, values in found.items()}


def described(base: InContext, context: Outcomes, right: Array) -> InContext:
    params, arrays = base.state()
    router = InContext.from_state(params, {name: array.copy() for name, array in arrays.items()})
    describe(router, context.pool[0], context.queries, right)
    return router


def budget_gain(seed: int, prompts: int = 400, each: int = 8) -> float:
    """Per cent of true utility that expected values win over equal groups; logits of success are N(-1, 1.5)."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.0, 1.5, size=prompts)
    chance, told = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-logit - rng.normal(0, 0.7, size=prompts)))
    given = group_utility(chance, allocate_rollouts(told, each * prompts)).sum()
    equal = group_utility(chance, np.full(prompts, each)).sum()
    return float(100 * (given / equal - 1))


def prove(seed: int) -> Proof:
    """Five seeded splits; near-duplicates never on both sides."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 5)
    found = [one_seed(outcomes, s) for s in seeds]

    def lead(way: str, over: str) -> list[float]:
        return [100 * float(np.mean([f[way, size] - f[over, size] for size in CLAIMED])) for f in found]

    name = "AUC within the unseen model over {}, mean of 32, 128 and 256 answers"
    effects = [
        effect_over_seeds(name.format(over), lead("in context", over), "points")
        for over in ("difficulty prior", "neighbours", "ridge alone")
    ]
    effects.append(
        effect_over_seeds("utility of rollouts over equal ones, simulated", [budget_gain(s) for s in seeds], "per cent")
    )
    tables = {"LLMRouter, 9 models": found, "RouterDC, 7 models of one size": [one_seed(full_table("routerdc7"), seed)]}
    rows = [
        {"table": table, "answers": size} | {way: float(np.mean([f[way, size] for f in runs])) for way in WAYS}
        for table, runs in tables.items()
        for size in SIZES
    ]
    return Proof(
        id=45,
        name="V0",
        claim="a few answers of a model and what other models find hard rank its prompts better than either alone",
        baseline="difficulty prior of the other models; shrunk kNN and kernel ridge on the same answers",
        effects=effects,
        falsifier=effect_over_seeds(
            "answers shuffled, over the difficulty prior", lead("shuffled", "difficulty prior"), "points"
        ),
        seeds=list(seeds),
        rows=rows,
        notes="On RouterDC's seven models of one size the difficulty prior is nearly all there is; no claim is made.",
        figures={f"AUC, {size} answers": float(np.mean([f["in context", size] for f in found])) for size in SIZES},
    )
