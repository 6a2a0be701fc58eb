"""Proof of system 63, efficient reasoning: a mode and a token budget for each kind of question, at the price of tokens.

Third version. The first (two kinds, budgets to 192) and the second (seven kinds, budgets to 384) claimed a fifth fewer
tokens at equal accuracy, with budgets mixed up as falsifier; both failed. Why: of seven kinds one needs a long answer,
so mixing up budgets costs little, and two fixed arms tie in accuracy at 98 and 41 tokens, so what can be saved is
chance. What differs between kinds is the mode (steps took programs from 6 to 33 % and everyday questions from 89 to
61 %), seen but not claimed. Changed, on the earlier recordings only: the claim and the falsifier; the plan is cautious;
halvings may fit on the earlier recording too; the fresh recording judges. It has another seed, no question of the
earlier one, three budgets that both have, and more of the cheap kinds; every kind counts alike.

An arm is a mode and a budget. Worth: accuracy less the price `auto` pays for a token times tokens. The plan takes for
each kind the arm whose gain over the best fixed arm, less one standard error, is highest; with none above 0, the fixed
arm. Claim: on fresh questions the plan is worth more than the fixed arm. Baseline: the fixed arm worth most over all
kinds, chosen on the same rows by the same worth (a mix of fixed arms is worth no more). Plans are fitted on the
earlier recording and a random half of the fresh one and judged on the other half, 20 halvings; the interval is a
bootstrap over fresh questions within their kinds. Falsifier: the same plans, each given to another kind.
Data: `recipes.reasoning`, self-made probes answered by the embedded 0.5B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from polyroute.data.catalogue import catalogue
from polyroute.proofs.proof import Effect, Proof
from polyroute.recipes.reasoning import BUDGETS, MODES, recorded_budgets
from polyroute.types import Array, Rng

TRADE_OFF, REFERENCE = 0.3, (600, 200)  # how `auto` weighs cost: docs/configuration.md, "what a choice is worth"
HALVINGS = 20
CAUTION = 1.0  # standard errors that a gain must exceed

Arm = tuple[int, int]  # index of the mode, of the budget


class Recorded(NamedTuple):
    """What one model scored and spent: n items, k modes, b budgets."""

    family: Array  # [n] str
    score: Array  # [n, k, b] 0 or 1
    tokens: Array  # [n, k, b] completion tokens, a forced answer included

    def take(self, rows: Array) -> Recorded:
        return Recorded(self.family[rows], self.score[rows], self.tokens[rows])

    def joined(self, other: Recorded) -> Recorded:
        return Recorded(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def worth(self, price: float) -> Array:
        """[n, k, b] score less the price of the tokens."""
        found: Array = self.score - price * self.tokens
        return found


def read(recorded: Mapping[str, Any]) -> Recorded:
    """The recorded outcomes at BUDGETS as arrays, modes in the order of MODES."""
    at = [recorded["budgets"].index(budget) for budget in BUDGETS]
    both = np.array([[rows[mode] for mode in MODES] for rows in recorded["items"].values()])[:, :, at]  # [n, k, b, 2]
    family = np.array([name.rsplit("-", 2)[0] for name in recorded["items"]])
    return Recorded(family, both[..., 0], both[..., 1])


def token_price(model: str) -> float:
    """Quality that `auto` of the embedded pool gives up to save one completion token of this model."""
    known = catalogue()
    dearest = max(REFERENCE[0] * m.price_in + REFERENCE[1] * m.price_out for m in known.embedded())
    return TRADE_OFF * known.local_model(model).price_out / dearest


def best_fixed(table: Recorded, price: float) -> Arm:
    """The one arm worth most, every kind counting alike; of equals the first."""
    worth = table.worth(price)
    mean = np.mean([worth[table.family == name].mean(axis=0) for name in np.unique(table.family)], axis=0)
    mode, budget = np.unravel_index(mean.argmax(), mean.shape)
    return int(mode), int(budget)


def plan(table: Recorded, price: float, fixed: Arm, caution: float = CAUTION) -> dict[str, Arm]:
    """For each kind the arm whose gain over `fixed` less its standard errors is highest, `fixed` where none gains.

    The variance of a gain is taken as if one more question had half a point's, so that few that agree prove little.
    """
    chosen = {}
    for family in np.unique(table.family):
        worth = table.take(table.family == family).worth(price)
        gain = worth - worth[:, fixed[0], fixed[1]][:, None, None]
        n = len(gain)
        error = np.sqrt((n * gain.var(axis=0) + 0.5) / (n + 1) / n)
        sure = gain.mean(axis=0) - caution * error
        sure[fixed] = 0.0
        mode, budget = np.unravel_index(sure.argmax(), sure.shape)
        chosen[str(family)] = (int(mode), int(budget)) if sure.max() > 0 else fixed
    return chosen


def misplaced(plans: Mapping[str, Arm], rng: Rng) -> dict[str, Arm]:
    """Each kind's plan given to another kind; none keeps its own."""
    names = list(plans)
    order = rng.permutation(len(names))
    return {names[i]: plans[names[j]] for i, j in zip(order, np.roll(order, 1), strict=True)}


def halves(family: Array, rng: Rng) -> Array:
    """[n] bool: a random half of each family."""
    first = np.zeros(len(family), dtype=bool)
    for name in np.unique(family):
        rows = rng.permutation(np.flatnonzero(family == name))
        first[rows[: len(rows) // 2]] = True
    return first


def judged(earlier: Recorded, fresh: Recorded, price: float, rng: Rng) -> dict[str, Array]:
    """Score and tokens [n, 2] of every fresh item by plan, fixed arm and misplaced plans, means over halvings."""
    found = {name: np.zeros((len(fresh.family), 2)) for name in ("plan", "fixed", "misplaced")}
    for _ in range(HALVINGS):
        first = halves(fresh.family, rng)
        for half in (first, ~first):
            known = earlier.joined(fresh.take(~half))
            fixed = best_fixed(known, price)
            plans = plan(known, price, fixed)
            arms = {"plan": plans, "fixed": dict.fromkeys(plans, fixed), "misplaced": misplaced(plans, rng)}
            for name, chosen in arms.items():
                for i in np.flatnonzero(half):
                    at = (i, *chosen[str(fresh.family[i])])
                    found[name][i] += np.array([fresh.score[at], fresh.tokens[at]]) / HALVINGS
    return found


def over_kinds(values: Array, family: Array) -> float:
    """Mean of the kinds' means."""
    return float(np.mean([values[family == name].mean() for name in np.unique(family)]))


def effect_within_kinds(name: str, values: Array, family: Array, rng: Rng) -> Effect:
    """Mean of the kinds' means of values [n] in points, with a 95 % bootstrap within the kinds, 2,000 resamples."""
    draws = np.zeros(2000)
    kinds = np.unique(family)
    for kind in kinds:
        own = values[family == kind]
        draws += own[rng.integers(len(own), size=(len(draws), len(own)))].mean(axis=1) / len(kinds)
    low, high = (float(100 * v) for v in np.percentile(draws, [2.5, 97.5]))
    return Effect(name=name, value=100 * over_kinds(values, family), low=low, high=high, unit="points")


def prove(seed: int) -> Proof:
    """Twenty random halvings of the fresh recording, each half judged by what was fitted on the rest."""
    recorded = recorded_budgets("fresh")
    earlier, fresh, price = read(recorded_budgets("earlier")), read(recorded), token_price(recorded["model"])
    rng = np.random.default_rng(seed)
    found = judged(earlier, fresh, price, rng)
    worth = {name: rows[:, 0] - price * rows[:, 1] for name, rows in found.items()}
    kinds = len(np.unique(fresh.family))
    figures: dict[str, float] = {"items": len(fresh.family), "earlier items": len(earlier.family), "token_price": price}
    for name, rows in found.items():
        figures[name] = 100 * over_kinds(rows[:, 0], fresh.family)
        figures[f"{name} tokens"] = over_kinds(rows[:, 1], fresh.family)
    return Proof(
        id=63,
        name="LRM survey (agent routers)",
        claim="a mode and a token budget for each kind of question are worth more than one for all, at the price of "
        f"tokens ({recorded['model']}, {len(fresh.family)} fresh probes of {kinds} kinds)",
        baseline="the one mode and budget worth most, chosen on the same rows",
        effects=[effect_within_kinds("accuracy less the price of tokens, plan over the fixed arm",
                                     worth["plan"] - worth["fixed"], fresh.family, rng)],
        falsifier=effect_within_kinds("the same with each kind's plan given to another kind",
                                      worth["misplaced"] - worth["fixed"], fresh.family, rng),
        seeds=[seed],
        rows=rows_of(fresh),
        notes=f"third version; plan: {figures['plan']:.1f} % right at {figures['plan tokens']:.0f} tokens, one arm: "
        f"{figures['fixed']:.1f} % at {figures['fixed tokens']:.0f}; every kind counts alike",
        figures=figures,
    )  # fmt: skip


def rows_of(table: Recorded) -> list[dict[str, Any]]:
    """Accuracy and tokens of every arm in each family, over all items."""
    rows = []
    for family in np.unique(table.family):
        own = table.take(table.family == family)
        for k, mode in enumerate(MODES):
            score, tokens = own.score[:, k].mean(axis=0), own.tokens[:, k].mean(axis=0)
            cells = {f"{b} tokens": f"{q:.2f} ({t:.0f})" for b, q, t in zip(BUDGETS, score, tokens, strict=True)}
            rows.append({"family": str(family), "mode": mode, "items": len(own.family), **cells})
    return rows
