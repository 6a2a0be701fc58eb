"""Proof of system 16, Tryage: a predicted loss finds a best model more often than the best single one is."""

from __future__ import annotations

import numpy as np

from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out, shuffled, sizes_of
from polyroute.recipes.tryage import objective, pareto, tryage
from polyroute.types import Array, Outcomes

WEIGHTS = (0.0, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6, np.inf)


def in_best_set(choice: Array, quality: Array) -> Array:
    """[n] 1.0 where the chosen model scored as high as any."""
    chosen = quality[np.arange(len(quality)), choice]
    return (chosen >= quality.max(axis=1) - 1e-9).astype(float)


def one_seed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    """Share of held-out queries, where models differ, on which the choice is among the best."""
    train, test = held_out(outcomes, seed)
    quality = test.values["quality"]
    differ = quality.max(axis=1) > quality.min(axis=1)
    attributes = {"size": sizes_of(outcomes)}
    best = int(train.values["quality"].mean(axis=0).argmax())
    shares = {"best single": in_best_set(np.full(len(test), best), quality)[differ].mean()}
    for name, table in (("tryage", train), ("shuffled", shuffled(train, np.random.default_rng(seed)))):
        router = tryage(attributes).fit(table)
        utility = objective({}).utility(router.predict(test.queries, test.pool))
        shares[name] = in_best_set(utility.argmax(axis=1), quality)[differ].mean()
        if name == "tryage":
            points = pareto(router, test, "size", WEIGHTS)
            mean_size = np.array([point["size"] for point in points])
            shares["largest rise of size"] = float(np.diff(mean_size).max())
            shares["size at the end over smallest"] = float(mean_size[-1] - min(attributes["size"].values()))
            shares |= {f"size at {p['weight']:g}": p["size"] for p in points}
            shares |= {f"quality at {p['weight']:g}": p["quality"] for p in points}
    return shares


def prove(seed: int) -> Proof:
    """Five seeded splits of LLMRouter's nine models; near-duplicates never on both sides."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 5)
    found = [one_seed(outcomes, s) for s in seeds]
    gain = [100 * (f["tryage"] - f["best single"]) for f in found]
    broken = [100 * (f["shuffled"] - f["best single"]) for f in found]
    rise = max(f["largest rise of size"] for f in found)
    end = max(f["size at the end over smallest"] for f in found)
    falls = Effect(
        name="mean size falls along the whole sweep and ends at the smallest model", value=-max(rise, end),
        low=-max(rise, end), high=-max(rise, end), unit="billion parameters risen", margin=-1e-9,
    )  # fmt: skip
    rows = [
        {
            "weight of size": f"{weight:g}",
            "mean size": float(np.mean([f[f"size at {weight:g}"] for f in found])),
            "quality": float(np.mean([f[f"quality at {weight:g}"] for f in found])),
        }
        for weight in WEIGHTS
    ]
    return Proof(
        id=16,
        name="Tryage",
        claim="a predicted loss per model picks a best model more often than any fixed model (LLMRouter, 9 models)",
        baseline="best single model of the training queries",
        effects=[effect_over_seeds("share of choices in the best set", gain, "points"), falls],
        falsifier=effect_over_seeds("the same with outcomes shuffled over queries", broken, "points"),
        seeds=list(seeds),
        rows=rows,
        figures={name: float(np.mean([f[name] for f in found])) for name in ("tryage", "best single", "shuffled")},
    )
