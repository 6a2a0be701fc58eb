"""Proof of system 30, R2-Reasoner: a model for each step, from labels that a grouped search found.

A simulation. Problems have 2 to 6 steps of a difficulty between 0 and 0.75; P(a model does a step right) is a logistic
curve of difficulty, fitted for each of LLMRouter's nine models to its scores by how many of the other models failed;
an answer is right if all its steps are. A step reads the problem (100 tokens) and all earlier results (80 each) and
writes 80, at list prices, so sending the context again to another model is paid for, and so is the decomposition, by
the cheapest model. Without steps a model reads the problem once and writes all results.
Claim, five seeds: (1) for 3 and 4 steps the grouped search needs at least 5 times fewer runs than all 9^n, counted as
the base-10 logarithm, and (2) where both find a right answer costs at most 5 % more; (3) the allocator learned from its
labels over the models that no cheaper one outdoes, seeing difficulty with noise, reaches the accuracies of a router
that gives the whole problem to one of all nine (a head a model on the noisy difficulties' mean, spread, largest, and
their number) for at least 30 % less, mean over accuracies 25, 50 and 75 % of the way along that router's frontier.
Baselines: the exhaustive search; that task-level router. Falsifier: (3) with all steps of a problem equally hard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.offline.allocation import Search, exhaustive_allocation, grouped_allocation_search, groups_by_price
from polyroute.offline.frontier import Hull, choose, cost_at, hull_of
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out
from polyroute.recipes.r2_reasoner import StepAllocator, queries
from polyroute.routers.heads import logistic_posterior, sigmoid
from polyroute.routers.linear import Linear
from polyroute.types import Array, Candidate, Outcomes, Rng

PROBLEM, RESULT, SPLIT = 100, 80, (150, 60)  # tokens: of the problem, of a step's result, of the decomposition
HARDEST, NOISE = 0.75, 0.08
TRAIN, TEST, SEARCHED = 400, 400, 16  # problems
CAUTION = np.linspace(0.02, 0.98, 49)
FEWER, DEARER, SAVING = np.log10(5.0), 5.0, 30.0  # log10 runs, percent, percent


class World(NamedTuple):
    """Nine models: how they fall with difficulty, and what they charge."""

    curve: Array  # [m, 2] logit of a right step: curve[:, 0] + curve[:, 1] * difficulty
    price: Array  # [m, 2] USD per token read and written
    pool: list[Candidate]

    def chance(self, difficulty: Array) -> Array:
        """P(right) [..., m] of a step."""
        logit: Array = self.curve[:, 0] + np.asarray(difficulty)[..., None] * self.curve[:, 1]
        return sigmoid(logit)

    def step_cost(self, num_steps: int) -> Array:
        """USD [steps, m] of each step with each model, the context read again."""
        read = PROBLEM + RESULT * np.arange(num_steps)
        return read[:, None] * self.price[:, 0] + RESULT * self.price[:, 1]

    def whole_cost(self, num_steps: int) -> Array:
        """USD [m] of a problem given to one model."""
        cost: Array = PROBLEM * self.price[:, 0] + num_steps * RESULT * self.price[:, 1]
        return cost

    def split_cost(self) -> float:
        return float((self.price @ np.array(SPLIT)).min())


def undominated(world: World) -> list[int]:
    """Columns, cheapest first, of the models that do better than every cheaper one, mean over difficulties."""
    mean, cost = world.chance(np.linspace(0, HARDEST, 20)).mean(axis=0), world.step_cost(3).mean(axis=0)
    kept: list[int] = []
    for j in np.argsort(cost, kind="stable"):
        if all(mean[j] > mean[k] for k in kept):
            kept.append(int(j))
    return kept


class Problem(NamedTuple):
    difficulty: Array  # [steps]
    seen: Array  # [steps] the same with noise
    luck: Array  # [steps, m] uniform: right where it is below the chance


def world_of(outcomes: Outcomes) -> World:
    """Curves fitted to a table: difficulty of a query for a model is the share of the others that failed."""
    quality = outcomes.values["quality"]
    m = quality.shape[1]
    failed = 1 - (quality.sum(axis=1, keepdims=True) - quality) / (m - 1)  # [n, m]
    curve = [
        logistic_posterior(np.c_[np.ones(len(y)), d], y, np.zeros(len(y)), np.full(2, 0.1))[0]
        for d, y in zip(failed.T, quality.T, strict=True)
    ]
    price = np.array([[c.profile.price_in, c.profile.price_out] for c in outcomes.pool]) / 1e6
    return World(np.array(curve), price, list(outcomes.pool))


def problems(count: int, m: int, rng: Rng, *, equal: bool, sizes: tuple[int, int] = (2, 6)) -> list[Problem]:
    found = []
    for _ in range(count):
        n = int(rng.integers(sizes[0], sizes[1] + 1))
        difficulty = np.full(n, rng.random()) * HARDEST if equal else rng.random(n) * HARDEST
        found.append(Problem(difficulty, difficulty + NOISE * rng.normal(size=n), rng.random((n, m))))
    return found


def search_of(world: World, problem: Problem) -> Search[float]:
    works = problem.luck < world.chance(problem.difficulty)
    rows = np.arange(len(works))
    cost = world.step_cost(len(works))
    return Search(problem.difficulty, lambda columns: bool(works[rows, list(columns)].all()), cost)


def step_features(problem: Problem) -> Array:
    return np.c_[problem.seen, problem.seen**2]


def task_features(problem: Problem) -> Array:
    s = problem.seen
    return np.array([s.mean(), s.std(), s.max(), len(s) / 6, (s**2).mean(), s.mean() * len(s) / 6])


def step_frontier(world: World, train: list[Problem], test: list[Problem]) -> Hull:
    """What the learned allocator reaches over its caution, decomposition paid."""
    groups = groups_by_price(world.step_cost(1))
    features: list[Array] = []
    labels: list[int] = []
    for problem in train:
        found = grouped_allocation_search(search_of(world, problem), problem.seen / HARDEST, groups)
        if found.right:
            features.append(step_features(problem))
            labels.extend(found.columns)
    costs = world.step_cost(3).mean(axis=0)
    allocator = StepAllocator().fit(np.concatenate(features), np.array(labels), world.pool, costs)
    ends = np.cumsum([len(p.seen) for p in test])[:-1]
    steps = np.concatenate([step_features(p) for p in test])
    points = []
    chance = allocator.enough(steps)
    for caution in CAUTION:
        parts = np.split(allocator.cheapest(chance, caution), ends)
        right, cost = 0.0, 0.0
        for problem, columns in zip(test, parts, strict=True):
            rows = np.arange(len(columns))
            right += world.chance(problem.difficulty)[rows, columns].prod()
            cost += world.step_cost(len(columns))[rows, columns].sum() + world.split_cost()
        points.append((cost / len(test), right / len(test)))
    return hull_of(*np.array(points).T)


def task_frontier(world: World, train: list[Problem], test: list[Problem]) -> Hull:
    """What one model a problem reaches, chosen by predicted success at every price of money."""
    right = np.array([(p.luck < world.chance(p.difficulty)).all(axis=0) for p in train], dtype=float)
    table = Outcomes(queries(np.array([task_features(p) for p in train])), world.pool, {"quality": right}, right >= 0)
    heads = Linear("quality", "logistic", l2=1.0, rank=None).fit(table)
    asked = queries(np.array([task_features(p) for p in test]))
    expected = heads.predict(asked, world.pool)["quality"].mean
    cost = np.array([world.whole_cost(len(p.seen)) for p in test])
    chance = np.array([world.chance(p.difficulty).prod(axis=0) for p in test])
    trade_offs = (0.0, *np.logspace(-3, 2, 60), np.inf)
    rows = np.arange(len(test))
    choices = choose(expected, cost, trade_offs, float(cost.mean(axis=0).max()))
    points = np.array([(cost[rows, c].mean(), chance[rows, c].mean()) for c in choices])
    return hull_of(*points.T)


def saved(world: World, rng: Rng, *, equal: bool) -> float:
    """Percent of money saved at the accuracies 25, 50 and 75 % along the task-level router's frontier."""
    train, test = (problems(k, len(world.pool), rng, equal=equal) for k in (TRAIN, TEST))
    kept = undominated(world)
    few = World(world.curve[kept], world.price[kept], [world.pool[j] for j in kept])
    narrowed = [[p._replace(luck=p.luck[:, kept]) for p in part] for part in (train, test)]
    task, step = task_frontier(world, train, test), step_frontier(few, *narrowed)
    levels = np.interp([0.25, 0.5, 0.75], [0, 1], [task.quality[0], task.quality[-1]])
    return float(np.mean([100 * (1 - cost_at(step, q) / cost_at(task, q)) for q in levels]))


def one_seed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    world = world_of(held_out(outcomes, seed)[0])
    groups = groups_by_price(world.step_cost(1))
    calls: list[tuple[int, int]] = []
    extra, both, one = [], 0, 0
    for problem in problems(SEARCHED, len(world.pool), rng, equal=False, sizes=(3, 4)):
        search = search_of(world, problem)
        full = exhaustive_allocation(search)
        quick = grouped_allocation_search(search, problem.seen / HARDEST, groups)
        calls.append((full.calls, quick.calls))
        one, both = one + full.right, both + (full.right and quick.right)
        if full.right and quick.right:
            extra.append(100 * (quick.cost / full.cost - 1))
    ratio = np.log10(np.array(calls)[:, 0] / np.array(calls)[:, 1])
    return {
        "fewer": float(ratio.min()), "runs": float(np.mean([q for _, q in calls])), "dearer": float(np.mean(extra)),
        "found": both / max(one, 1), "saved": saved(world, rng, equal=False),
        "saved, equal steps": saved(world, rng, equal=True),
    }  # fmt: skip


def prove(seed: int) -> Proof:
    """Five seeded worlds fitted to LLMRouter's nine models."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 5)
    found = [one_seed(outcomes, s) for s in seeds]

    def column(name: str, sign: float = 1.0) -> list[float]:
        return [sign * f[name] for f in found]

    effects: list[Effect] = [
        effect_over_seeds("fewest times fewer runs than all allocations, 5 times or more", column("fewer"), "log10",
                          float(FEWER)),
        effect_over_seeds("cost over the cheapest right allocation, at most 5 % more", column("dearer", -1.0),
                          "percent saved", -DEARER),
        effect_over_seeds("cost saved at equal accuracy over one model a problem, 30 % or more", column("saved"),
                          "percent", SAVING),
    ]  # fmt: skip
    return Proof(
        id=30,
        name="R2-Reasoner",
        claim="a grouped search labels steps in a few runs, and an allocator learned from the labels is cheaper at "
        "equal accuracy than one model a problem (simulated problems, nine models' curves)",
        baseline="all 9^n allocations; a router that gives the whole problem to one model",
        effects=effects,
        falsifier=effect_over_seeds("the same saving where all steps of a problem are equally hard",
                                    column("saved, equal steps"), "percent", SAVING),
        seeds=list(seeds),
        rows=[{"seed": s, **f} for s, f in zip(seeds, found, strict=True)],
        notes=f"where some allocation is right the grouped search finds one in {100 * np.mean(column('found')):.0f} %",
        figures={name: float(np.mean([f[name] for f in found])) for name in found[0]},
    )  # fmt: skip
