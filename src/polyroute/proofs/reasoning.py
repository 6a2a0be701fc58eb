"""Proof of system 63, efficient reasoning: a mode and a token budget for each kind of question, at equal accuracy.

Claim: the mode and budget chosen for each probe family, from a saturation curve fitted on one half of the items at the
price `auto` pays for a token, are at worst one standard error less accurate on the other half than the best fixed arm,
and spend at least a fifth fewer completion tokens. Baseline: the one mode and budget with the best accuracy on the
half chosen on, of equals the cheapest. Falsifier: the budgets of each item's scores mixed up in that half, which must
not keep the accuracy within that error. Data: `recipes.reasoning`, self-made probes answered by the embedded 0.5B.
A first recording (two families, budgets to 192 tokens) did not show it. Claim, margins and falsifier are the same for
the second (every family and level, budgets to 384, other texts), and were set before it was looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from polyroute.data.catalogue import catalogue
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.recipes.reasoning import MODES, BudgetCurve, recorded_budgets
from polyroute.types import Array, Rng

TRADE_OFF, REFERENCE = 0.3, (600, 200)  # how `auto` weighs cost: docs/configuration.md, "what a choice is worth"
SAVING = 20.0  # percent of tokens that must be saved


class Recorded(NamedTuple):
    """What one model scored and spent: n items, k modes, b budgets."""

    family: Array  # [n] str
    score: Array  # [n, k, b] 0 or 1
    tokens: Array  # [n, k, b] completion tokens, a forced answer included
    budgets: Array  # [b]

    def take(self, rows: Array) -> Recorded:
        return Recorded(self.family[rows], self.score[rows], self.tokens[rows], self.budgets)


def read(recorded: dict[str, Any]) -> Recorded:
    """The recorded outcomes as arrays, modes in the order of MODES."""
    both = np.array([[rows[mode] for mode in MODES] for rows in recorded["items"].values()])  # [n, k, b, 2]
    family = np.array([name.rsplit("-", 2)[0] for name in recorded["items"]])
    return Recorded(family, both[..., 0], both[..., 1], np.array(recorded["budgets"]))


def token_price(model: str) -> float:
    """Quality that `auto` of the embedded pool gives up to save one completion token of this model."""
    known = catalogue()
    dearest = max(REFERENCE[0] * m.price_in + REFERENCE[1] * m.price_out for m in known.embedded())
    return TRADE_OFF * known.local_model(model).price_out / dearest


def plan(half: Recorded, price: float) -> dict[str, tuple[int, int]]:
    """For each family the mode and budget, as indices, with the most quality less the price of expected tokens."""
    chosen = {}
    for family in np.unique(half.family):
        own = half.take(half.family == family)
        curves = [BudgetCurve().fit(half.budgets, row) for row in own.score.mean(axis=0)]
        worth = np.array([c.quality(half.budgets) for c in curves]) - price * own.tokens.mean(axis=0)  # [k, b]
        mode, budget = np.unravel_index(worth.argmax(), worth.shape)
        chosen[str(family)] = (int(mode), int(budget))
    return chosen


def best_fixed(half: Recorded, price: float = 0.0) -> tuple[int, int]:
    """The one mode and budget with the highest mean score, less a price of tokens; of equals the cheapest."""
    tokens = half.tokens.mean(axis=0)
    worth = half.score.mean(axis=0) - max(price, 1e-9) * tokens
    mode, budget = np.unravel_index(worth.argmax(), worth.shape)
    return int(mode), int(budget)


def shuffled(half: Recorded, rng: Rng) -> Recorded:
    """Each item's scores with their budgets mixed up; what a budget costs stays known."""
    order = rng.permuted(np.tile(np.arange(len(half.budgets)), (*half.score.shape[:2], 1)), axis=2)
    return half._replace(score=np.take_along_axis(half.score, order, axis=2))


def halves(family: Array, rng: Rng) -> Array:
    """[n] bool: a random half of each family."""
    first = np.zeros(len(family), dtype=bool)
    for name in np.unique(family):
        rows = rng.permutation(np.flatnonzero(family == name))
        first[rows[: len(rows) // 2]] = True
    return first


def one_seed(table: Recorded, seed: int, price: float) -> dict[str, float]:
    """Accuracy and mean tokens over all items, each judged by a choice made on the half it is not in."""
    rng = np.random.default_rng(seed)
    first = halves(table.family, rng)
    spent = {name: np.zeros((len(first), 2)) for name in ("plan", "fixed", "priced fixed", "shuffled")}
    for judged in (first, ~first):
        half = table.take(~judged)
        plans = {
            "plan": plan(half, price),
            "fixed": dict.fromkeys(np.unique(table.family), best_fixed(half)),
            "priced fixed": dict.fromkeys(np.unique(table.family), best_fixed(half, price)),
            "shuffled": plan(shuffled(half, rng), price),
        }
        for i in np.flatnonzero(judged):
            for name, chosen in plans.items():
                arm = chosen[table.family[i]]
                spent[name][i] = table.score[i][arm], table.tokens[i][arm]
    found: dict[str, float] = {}
    for name, rows in spent.items():
        found[name], found[f"{name} tokens"] = (float(v) for v in rows.mean(axis=0))
    return found


def prove(seed: int) -> Proof:
    """Five random halvings of the recorded items, each half judged by what was chosen on the other."""
    recorded = recorded_budgets()
    table, price = read(recorded), token_price(recorded["model"])
    seeds = range(seed, seed + 5)
    found = [one_seed(table, s, price) for s in seeds]
    fixed = float(np.mean([f["fixed"] for f in found]))
    noise = float(100 * np.sqrt(fixed * (1 - fixed) / len(table.family)))  # standard error of such an accuracy

    def over_fixed(name: str) -> list[float]:
        return [100 * (f[name] - f["fixed"]) for f in found]

    def saved(name: str) -> list[float]:
        return [100 * (1 - f[f"{name} tokens"] / f["fixed tokens"]) for f in found]

    accuracy = "accuracy less that of the best fixed arm, at worst one standard error below"
    effects: list[Effect] = [
        effect_over_seeds(accuracy, over_fixed("plan"), "points", -noise),
        effect_over_seeds("completion tokens saved, at least a fifth", saved("plan"), "percent", SAVING),
    ]
    return Proof(
        id=63,
        name="LRM survey (agent routers)",
        claim=f"a mode and a token budget for each family save tokens at equal accuracy ({recorded['model']}, "
        f"{len(table.family)} probes of {len(np.unique(table.family))} families)",
        baseline="the one mode and budget with the best accuracy on the other half, the cheapest of equals",
        effects=effects,
        falsifier=effect_over_seeds("the same accuracy with budget labels shuffled", over_fixed("shuffled"), "points",
                                    -noise),
        seeds=list(seeds),
        rows=rows_of(table),
        notes="halvings share the items, so the intervals say how much depends on the halving and not on the items; "
        f"one fixed arm chosen at the same token price: {np.mean(over_fixed('priced fixed')):+.1f} points, "
        f"{np.mean(saved('priced fixed')):.0f} % saved",
        figures={
            "items": len(table.family), "token_price": price, "noise_points": noise,
            **{name: float(np.mean([f[name] for f in found])) for name in found[0]},
        },
    )  # fmt: skip


def rows_of(table: Recorded) -> list[dict[str, Any]]:
    """Accuracy and tokens of every arm in each family, over all items."""
    rows = []
    for family in np.unique(table.family):
        own = table.take(table.family == family)
        for k, mode in enumerate(MODES):
            score, tokens = own.score[:, k].mean(axis=0), own.tokens[:, k].mean(axis=0)
            cells = {f"{b} tokens": f"{q:.2f} ({t:.0f})" for b, q, t in zip(table.budgets, score, tokens, strict=True)}
            rows.append({"family": str(family), "mode": mode, "items": len(own.family), **cells})
    return rows
