"""Proof of system 2, Router-R1: rewards of whole traces teach which name to call, and alpha what that may cost.

Claim, on LLMRouter's nine models with a tenth, made-up name among the choices, five seeded splits by group: a policy
trained only on sampled traces' rewards (1) scores more than the random mix of single models at its own cost, mean over
alpha 0, 0.1, 0.3, 0.6 and 0.9; (2) at alpha 0 scores more than the best single model; (3) spends at least 20 % less
at alpha 0.9 than at 0, cost never rising by more than 1 % on the way; (4) at alpha 0.3 chooses the same names with all
prices times 1000; (5) names the made-up model for at most 1 % of held-out queries.
Baselines: the cost-matched random mix and the best single model of the training queries. Falsifier: the same saving
with the percentile score of a cost replaced by 1 - USD. The router's own tokens are the same for every choice and
are left out. Costs of this table are estimates (data/README.md). It is not claimed that this beats a shrunk kNN,
whose score is in the rows: a policy that sees one sampled reward a choice has less to go by than a table.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from polyroute.offline.baselines import single_models
from polyroute.offline.frontier import hull_of, quality_at
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out
from polyroute.recipes.router_r1 import Graded, graded_traces, learn_names
from polyroute.routers.knn import KNN
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Array, Candidate, Outcomes

ALPHAS = (0.0, 0.1, 0.3, 0.6, 0.9)
MIDDLE = 0.3  # where score and cost both count
GHOST = Candidate("gpt-9")  # a name nobody has
SAVING, GHOSTS, RISE = 20.0, 1.0, 1.0  # percent; of cost, of queries, of cost


def chosen(policy: SoftmaxPolicy, test: Outcomes) -> Array:
    """The likeliest name for each held-out query, a column of the pool with the made-up name last."""
    estimates = policy.predict(test.queries, [*test.pool, GHOST])
    choice: Array = estimates["preference"].mean.argmax(axis=1)
    return choice


def one_seed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    """Score, cost and gain over the mix on the held-out queries at each alpha, and what breaking or rescaling does."""
    train, test = held_out(outcomes, seed)
    pool, rows = [*train.pool, GHOST], np.arange(len(test))
    graded = graded_traces(train, [c.id for c in pool])
    quality, cost = (np.c_[test.values[name], np.zeros(len(test))] for name in ("quality", "cost"))
    singles = single_models(test)
    mix = hull_of(singles.cost.mean(axis=1), singles.quality.mean(axis=1))
    best = train.values["quality"].mean(axis=0).argmax()
    near = KNN().fit(train).predict(test.queries, test.pool)["quality"].mean.argmax(axis=1)
    found = {"best single": float(quality[:, best].mean()), "kNN": float(quality[rows, near].mean())}

    def learn(alpha: float, of: Graded = graded, raw: bool = False) -> Array:
        cheapness = (lambda usd: 1.0 - usd) if raw else None
        policy = learn_names(of, train.queries, pool, alpha=alpha, cheapness=cheapness, rng=np.random.default_rng(seed))
        return chosen(policy, test)

    for alpha in ALPHAS:
        choice = learn(alpha)
        found[f"score {alpha:g}"] = float(quality[rows, choice].mean())
        found[f"cost {alpha:g}"] = float(cost[rows, choice].mean())
        found[f"gain {alpha:g}"] = found[f"score {alpha:g}"] - quality_at(mix, found[f"cost {alpha:g}"])
        found[f"ghost {alpha:g}"] = float((choice == len(test.pool)).mean())
    found["raw"] = float(cost[rows, learn(ALPHAS[-1], raw=True)].mean())
    dear = graded._replace(cost=1000.0 * graded.cost)
    found["changed"] = float((learn(MIDDLE, dear) != learn(MIDDLE)).mean())
    return found


def prove(seed: int) -> Proof:
    """Five seeded splits; every trace goes through the loop, the parser and the reward."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 5)
    found = [one_seed(outcomes, s) for s in seeds]

    def saved(name: str) -> list[float]:
        return [100 * (1 - f[name] / f["cost 0"]) for f in found]

    rises = [max(100 * (f[f"cost {b:g}"] / f[f"cost {a:g}"] - 1) for a, b in pairwise(ALPHAS)) for f in found]
    gain = [100 * float(np.mean([f[f"gain {a:g}"] for a in ALPHAS])) for f in found]
    over = [100 * (f["score 0"] - f["best single"]) for f in found]
    ghosts = [-100 * max(f[f"ghost {a:g}"] for a in ALPHAS) for f in found]
    effects: list[Effect] = [
        effect_over_seeds("score over the random mix at the same cost, mean over alpha", gain, "points"),
        effect_over_seeds("score at alpha 0 over the best single model", over, "points"),
        effect_over_seeds("cost saved by alpha 0.9, at least a fifth", saved("cost 0.9"), "percent", SAVING),
        effect_over_seeds("the largest rise of cost from one alpha to the next", [-r for r in rises], "percent", -RISE),
        effect_over_seeds(
            "choices kept with prices times 1000", [-100 * f["changed"] for f in found], "percent lost", -1.0
        ),
        effect_over_seeds("queries sent to a made-up name, at most 1 in 100", ghosts, "percent lost", -GHOSTS),
    ]
    rows = [
        {
            "alpha": f"{alpha:g}",
            "score": mean_of(found, f"score {alpha:g}"),
            "USD per 1000": 1000 * mean_of(found, f"cost {alpha:g}"),
            "over mix": mean_of(found, f"gain {alpha:g}"),
            "best single": mean_of(found, "best single"),
            "kNN": mean_of(found, "kNN"),
        }
        for alpha in ALPHAS
    ]
    return Proof(
        id=2,
        name="Router-R1",
        claim="rewards of whole traces teach a policy whom to ask; alpha trades score for cost (LLMRouter, 9 models)",
        baseline="random mix of single models at the same cost; best single model of the training queries",
        effects=effects,
        falsifier=effect_over_seeds(
            "the same saving without percentile scores: 1 - USD", saved("raw"), "percent", SAVING
        ),
        seeds=list(seeds),
        rows=rows,
        notes="a small softmax policy stands in for the language model and a table for the pool; it is not claimed to "
        "beat a shrunk kNN, whose score is in the rows; prices differ twentyfold, so from alpha 0.6 on the cheapest "
        "model is taken nearly always",
        figures={name: mean_of(found, name) for name in found[0]},
    )


def mean_of(found: list[dict[str, float]], name: str) -> float:
    return float(np.mean([f[name] for f in found]))
