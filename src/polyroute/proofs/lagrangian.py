"""Proof of system 100, Lagrangian budget routing: one price spends a budget to the request and buys near the LP's best.

Second version. The first claimed the same and passed at seed 0; at seed 7 it failed by claim 1, 99.2 % [97.6, 100.7]
and 81 % at the worst, on RouterBench at the lowest budget, where windows ended up to 1.6 % short. Why (seeds from 200):
the cap on what an answer may cost keeps windows from ending above their limit, so that where answers are dear the
total sinks for some 1,500 requests before it settles, and nothing held a window from below: the price looked at the
total and not at the window. Changed: the price (policies/pace.py) also answers to what the window at hand is short by.
The size of that was chosen on seeds 206 to 225 of six variants. In the proof nothing changed but one claim more, the
specification's 3 %, here for every window and not only after warm-up.

Claimed. On RouterBench and LLMRouter (train and valid, half of the groups held out), budgets at 10, 25 and
50 % of the span of the models' mean costs, quality and cost predicted, the recorded cost paid:
1. shuffled streams: of all windows of 1,000 requests in a row, 98 in 100 spend within 1 % of the budget on average of
   tables and budgets, and 90 in 100 at the worst of them ("any window" cannot be promised: at the 10 % budget one
   answer costs nine budgets, and up to fifty); no window is more than 3 % off;
2. streams sorted by data set, by cost and by gain: no window overspends by more than 2 %, wherever the cheapest choices
   fit into every 50 requests (they may underspend: where good choices are cheap no money is burnt);
3. the expected quality of the choices is within 0.5 % of the linear programme's bound for the stream at the same
   expected spend, mean of the budgets of a table;
4. the recorded quality beats the best random mix of single models at the very spend (the baseline);
5. on random batches the exact plan is below the integer optimum by at most one row's range, its bound never is.
Dropped after development on seeds from 100: the 0.5 % against a programme that is given the whole limit or the recorded
costs, which no policy knows; the rows show that one too.
Falsifier: the same with predicted quality shuffled over queries must not beat the random mix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.offline.baselines import single_models
from polyroute.offline.frontier import Hull, hull_of, quality_at
from polyroute.offline.lagrange import plan_within, window_excess
from polyroute.policies.budget import Budget, BudgetConfig
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out
from polyroute.recipes.lagrangian import QUALITY, lagrangian
from polyroute.types import Array, Estimate, Outcomes

TABLES = ("routerbench", "llmrouter9")
SHARES = (0.1, 0.25, 0.5)  # of the span of mean costs
WINDOW = 1000


class World(NamedTuple):
    """Predictions and records of a table's held-out half, and predictions of the half that was learned from."""

    quality: Array  # [n, m] expected
    cost: Array  # [n, m] expected USD
    earned: Array  # [n, m] recorded quality
    paid: Array  # [n, m] recorded USD
    dataset: Array  # [n]
    past: tuple[Array, Array]  # expected quality and cost of the past
    mix: Outcomes


def world(outcomes: Outcomes, seed: int) -> World:
    train, test = held_out(outcomes, seed, num_folds=2)
    router = lagrangian().fit(train)
    now, before = router.predict(test.queries, test.pool), router.predict(train.queries[-200:], train.pool)
    cost, past = now["cost"].mean.clip(min=0.0), (before["quality"].mean, before["cost"].mean.clip(min=0.0))
    earned, paid = test.values["quality"], test.values["cost"]
    return World(now["quality"].mean, cost, earned, paid, test.labels["dataset"], past, test)


def served(w: World, order: Array, limit: float, quality: Array) -> Array:
    """[len(order)] columns that the policy chooses for the stream, told each answer's recorded cost."""
    budget = Budget(BudgetConfig(limit=limit, window=WINDOW, tolerance=0.01))
    assert budget.pace is not None
    budget.pace.learn(*w.past)
    rng, allowed = np.random.default_rng(0), np.ones((1, quality.shape[1]), dtype=bool)
    choice = np.zeros(len(order), dtype=int)
    for t, i in enumerate(order):
        estimates = {"quality": Estimate(quality[i : i + 1]), "cost": Estimate(w.cost[i : i + 1])}
        choice[t] = budget.decide(estimates, QUALITY, allowed, rng).index[0, 0]
        budget.spent(float(w.paid[i, choice[t]]))
    return choice


def sorted_orders(w: World, rng: np.random.Generator) -> dict[str, Array]:
    """Streams that mislead: one data set after the other, dear queries last, queries that gain most last."""
    mixed = rng.permutation(len(w.quality))
    gain = w.quality.max(axis=1) - np.take_along_axis(w.quality, w.cost.argmin(axis=1)[:, None], axis=1)[:, 0]
    keys = {
        "by data set": np.unique(w.dataset, return_inverse=True)[1],
        "dear last": w.paid.max(axis=1),
        "gain last": gain,
    }
    return {name: mixed[np.argsort(key[mixed], kind="stable")] for name, key in keys.items()}


def one_budget(w: World, share: float, rng: np.random.Generator) -> dict[str, float]:
    """What the policy spends and earns at one budget."""
    means = w.paid.mean(axis=0)
    limit = float(means.min() + share * (means.max() - means.min()))
    order = np.concatenate([rng.permutation(len(w.quality)) for _ in range(2)])
    choice = served(w, order, limit, w.quality)
    excess = window_excess(w.paid[order, choice], limit, WINDOW)
    expected = np.array([w.cost[order, choice].sum()])
    plan = plan_within(w.quality[order], w.cost[order][:, :, None], expected)
    knows = plan_within(w.quality[order], w.paid[order][:, :, None], np.array([limit * len(order)]))
    curve = single_models(w.mix)
    hull = hull_of(curve.cost.mean(axis=1), curve.quality.mean(axis=1))
    broken = w.quality[rng.permutation(len(w.quality))]
    missed = served(w, order[: len(w.quality)], limit, broken)
    found = {
        "limit, USD per 1,000": 1000 * limit,
        "spend / limit": float(w.paid[order, choice].mean() / limit),
        "windows within 1 %": 100 * float((np.abs(excess) <= 0.01).mean()),
        "worst window, %": 100 * float(np.abs(excess).max()),
        "expected quality to the bound, %": 100 * (float(w.quality[order, choice].sum()) / plan.bound - 1),
        "to the bound that knows the costs, %": 100 * (float(w.quality[order, choice].sum()) / knows.bound - 1),
        "over the mix": 100 * over_mix(w, order, choice, hull),
        "shuffled over the mix": 100 * over_mix(w, order[: len(w.quality)], missed, hull),
    }
    worst = -np.inf
    for stream in sorted_orders(w, rng).values():
        cheapest = w.paid[stream, w.cost[stream].argmin(axis=1)]
        fits = window_excess(cheapest, limit, 50) <= 0.0
        chosen = served(w, stream, limit, w.quality)
        over = window_excess(w.paid[stream, chosen], limit, min(WINDOW, len(stream) // 2))
        scale = min(WINDOW, len(stream) // 2) / WINDOW  # a shorter window's slack is the same number of budgets
        if fits.all():
            worst = max(worst, float(over.max()) * scale)
    return found | {"sorted streams, worst excess, %": 100 * worst if worst > -np.inf else np.nan}


def over_mix(w: World, order: Array, choice: Array, hull: Hull) -> float:
    """Recorded quality of the choices less that of the best random mix of single models at the same spend."""
    return float(w.earned[order, choice].mean()) - quality_at(hull, float(w.paid[order, choice].mean()))


def certificate(seed: int) -> float:
    """How far the exact plan and its bound are from breaking their promise, in scores: 0 or more is kept."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    rng = np.random.default_rng(seed)
    n, m = 200, 5
    scores, cost = rng.random((n, m)), rng.lognormal(size=(n, m))
    limit = float(0.7 * cost.min(axis=1).sum() + 0.3 * cost.mean(axis=1).sum())
    rows = LinearConstraint(np.kron(np.eye(n), np.ones(m)), 1, 1)
    budget = LinearConstraint(cost.reshape(1, -1), -np.inf, limit)
    best = milp(-scores.ravel(), constraints=[rows, budget], integrality=np.ones(n * m), bounds=Bounds(0, 1),
                options={"mip_rel_gap": 1e-6, "time_limit": 20.0})  # fmt: skip
    plan = plan_within(scores, cost[:, :, None], np.array([limit]))
    widest = float(np.ptp(scores, axis=1).max())
    optimum = -float(best.fun)
    return min(plan.value + widest - optimum, plan.bound - optimum + 1e-6, limit * (1 + 1e-9) - float(plan.use[0]))


def prove(seed: int) -> Proof:
    """Five seeded halves of two tables, three budgets each."""
    seeds = range(seed, seed + 5)
    tables = {name: full_table(name) for name in TABLES}
    cells: dict[tuple[str, float], list[dict[str, float]]] = {}
    for s in seeds:
        for name, table in tables.items():
            w = world(table, s)
            for share in SHARES:
                cells.setdefault((name, share), []).append(one_budget(w, share, np.random.default_rng(s)))

    def over(key: str, table: str) -> Array:
        return np.mean([[c[key] for c in cells[table, share]] for share in SHARES], axis=0)

    inside = np.array([[c["windows within 1 %"] for c in found] for found in cells.values()])  # [cells, seeds]
    excess = 2.0 - np.nanmax([[c["sorted streams, worst excess, %"] for c in f] for f in cells.values()], axis=0)
    far = max(c["worst window, %"] for found in cells.values() for c in found)
    kept = min(certificate(s) for s in seeds)
    effects = [
        effect_over_seeds("windows of 1,000 within 1 % of the budget, mean", inside.mean(axis=0), "%", 98.0),
        Effect(name="the same at the worst table, budget and seed", value=float(inside.min()), low=float(inside.min()),
               high=float(inside.min()), unit="%", margin=90.0),
        Effect(name="3 % less the furthest that any window is off", value=3 - far, low=3 - far, high=3 - far,
               unit="% of the budget"),
        Effect(name="2 % less the worst excess of sorted streams", value=float(excess.min()), low=float(excess.min()),
               high=float(excess.max()), unit="% of the budget"),
        Effect(name="the exact plan is within one row of the integer optimum, its bound above it", value=kept, low=kept,
               high=kept, unit="score", margin=-1e-9),
    ]  # fmt: skip
    for name in TABLES:
        effects.append(effect_over_seeds(f"{name}: expected quality to the LP bound",
                                         over("expected quality to the bound, %", name), "%", -0.5))  # fmt: skip
        effects.append(
            effect_over_seeds(f"{name}: recorded quality over the mix", over("over the mix", name), "points")
        )
    broken = np.mean([over("shuffled over the mix", name) for name in TABLES], axis=0)
    rows = [{"table": name, "budget": f"{share:.0%} of the span",
             **{key: float(np.mean([c[key] for c in found])) for key in found[0]}}
            for (name, share), found in cells.items()]  # fmt: skip
    return Proof(
        id=100,
        name="Cutting Slack",
        claim="one price holds a stream to its budget in every window and buys within 0.5 % of the linear programme",
        baseline="the best random mix of single models at the same spend",
        effects=effects,
        falsifier=effect_over_seeds("recorded quality over the mix, predicted quality shuffled", broken, "points"),
        seeds=list(seeds),
        rows=rows,
        notes="Holding windows to 1 % costs quality where gains differ widely from query to query (up to 2 % in "
        "tests/policies/test_pace.py); a wider tolerance does not. Second version: in the first nothing held a "
        "window from below.",
    )
