"""Proof of system 36, MoMA: scores from comparisons, a compromise by TOPSIS, and agents masked by the dialogue's state.

Second version. The first claimed the same four things; the first of them held at seed 0 (-0.1 points [-1.0, 0.8]) and
not at seed 7 (-0.4 [-1.9, 1.2]), judged on eight held-out quarters; the other three held at both. Changed: for that
claim every query is judged out of fold in eight partitions, each with a draw of its own of which two answers are
known, and the interval is over the 3,161 queries. The margin, the ridge, the other claims and the falsifier are as
they were. All seeds see the same queries, so the final seeds are hardly a second experiment beside the development
seeds (200 on).

Claimed, eight seeds:
1. LLMRouter's nine models, a random two answers a query: scores learned from the one comparison choose not worse by 1.5
   points or more than a ridge a model on the same two answers. Parity, no gain: 1.5 points are under a tenth of what
   the best single model has over a random one (19). That comparisons do better when answers are few, which the
   spec expects, did not show on seeds 100 to 104 and was dropped before the first version.
2. Full answers, held-out quarter: TOPSIS at weights 0.9, 0.7, 0.5 and 0.3 on quality scores more, in the mean, than
   random mixes of single models at the same cost.
3. Fourteen agents, one a task, in a random state machine that allows five a state; walks of forty turns ask an allowed
   agent's question: the mask finds the agent at least 2 points more often than the same choice without it.
4. In 320 walks a masked agent is never chosen.
Baselines: ridge on the same answers; random mix at equal cost; no mask.
Falsifier: claim 2 with outcomes shuffled over queries, so that comparisons say nothing of the text.
"""

from __future__ import annotations

import numpy as np

from polyroute.offline.frontier import hull_of, quality_at
from polyroute.proofs.proof import Effect, Proof, effect_over_rows, effect_over_seeds
from polyroute.proofs.tables import each_held_out, full_table, held_out, shuffled
from polyroute.recipes.moma import AgentSide, AgentStateMachine, choose_models
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Together
from polyroute.routers.pairwise import Pairwise
from polyroute.types import Array, Outcomes, Rng

WEIGHTS = (0.9, 0.7, 0.5, 0.3)


def thinned(outcomes: Outcomes, rng: Rng, answers: int = 2) -> Outcomes:
    """The table with a random few answers a query."""
    seen = np.argsort(rng.random(outcomes.observed.shape), axis=1) < answers
    values = {name: np.where(seen, column, np.nan) for name, column in outcomes.values.items()}
    return Outcomes(outcomes.queries, outcomes.pool, values, seen, outcomes.labels)


def from_two_answers(outcomes: Outcomes, seed: int) -> dict[str, Array]:
    """Score of the choice for each query [n], learned out of fold from two answers a query: comparisons and ridge."""
    rng, found = np.random.default_rng(seed), {name: np.zeros(len(outcomes)) for name in ("comparisons", "ridge")}
    for train, test, held in each_held_out(outcomes, seed):
        few = thinned(train, rng)
        for name, router in (("comparisons", Pairwise()), ("ridge", Linear("quality", kind="ridge", rank=32))):
            best = router.fit(few).predict(test.queries, test.pool)["quality"].mean.argmax(axis=1)
            found[name][held] = 100 * test.values["quality"][np.arange(len(test)), best]
    return found


def over_mix(train: Outcomes, test: Outcomes) -> list[float]:
    """Points over a random mix of single models at equal cost, for each weight."""
    router = Together([Pairwise(), Linear("cost", tokens="linear")]).fit(train)
    quality, cost, rows = test.values["quality"], test.values["cost"], np.arange(len(test))
    hull, found = hull_of(cost.mean(axis=0), quality.mean(axis=0)), []
    for weight in WEIGHTS:
        choice = choose_models(router, test.queries, test.pool, weight)
        paid = float(cost[rows, choice].mean())
        found.append(100 * float(quality[rows, choice].mean() - quality_at(hull, paid)))
    return found


def walks(train: Outcomes, test: Outcomes, rng: Rng, num_walks: int = 40) -> tuple[float, float, int]:
    """(% found with the mask, % without it, masked agents chosen) over walks of forty turns."""
    tasks = np.unique(train.labels["dataset"]).tolist()
    states = [f"state-{i}" for i in range(10)]
    machine = AgentStateMachine(
        {s: {str(a): str(rng.choice(states)) for a in rng.choice(tasks, size=5, replace=False)} for s in states}
    )
    side = AgentSide({task: task for task in tasks}, machine).fit(train.queries, train.labels["dataset"])
    masked, free, wrong, turns = 0, 0, 0, 0
    for _ in range(num_walks):
        state = str(rng.choice(states))
        for _ in range(40):
            wanted = str(rng.choice(sorted(machine.agents(state))))
            query = test.queries[int(rng.choice(np.flatnonzero(test.labels["dataset"] == wanted)))]
            chosen = side.choose(query, state)
            masked += chosen == wanted
            free += side.choose(query) == wanted
            wrong += chosen is not None and chosen not in machine.agents(state)
            turns += 1
            state = machine.step(state, wanted)
    return 100 * masked / turns, 100 * free / turns, wrong


def one_seed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    train, test = held_out(outcomes, seed)
    rng, quality = np.random.default_rng(seed), test.values["quality"]
    gains = over_mix(train, test)
    masked, free, wrong = walks(train, test, rng)
    return {
        "best single": 100 * float(quality[:, train.values["quality"].mean(axis=0).argmax()].mean()),
        **{f"over the mix at weight {w:g}": gain for w, gain in zip(WEIGHTS, gains, strict=True)},
        "over the mix": float(np.mean(gains)),
        "over the mix, outcomes shuffled": float(np.mean(over_mix(shuffled(train, rng), test))),
        "agents found with the mask, %": masked, "agents found without, %": free, "masked agents chosen": float(wrong),
    }  # fmt: skip


def prove(seed: int) -> Proof:
    """Eight seeded splits and partitions; 40 walks a seed."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + 8)
    found = [one_seed(outcomes, s) for s in seeds]
    few = [from_two_answers(outcomes, s) for s in seeds]
    score = {name: np.mean([f[name] for f in few], axis=0) for name in few[0]}

    def less(name: str, other: str) -> list[float]:
        return [f[name] - f[other] for f in found]

    wrong = -sum(f["masked agents chosen"] for f in found)
    never = Effect(
        name="masked agents chosen in 320 walks, negated",
        value=wrong,
        low=wrong,
        high=wrong,
        unit="cases",
        margin=-1e-9,
    )
    return Proof(
        id=36,
        name="MoMA",
        claim="TOPSIS on compared scores beats mixing single models; a state's mask finds the right agent more often",
        baseline="ridge on the same answers; random mix at equal cost; the same choice without the mask",
        effects=[
            effect_over_rows("two answers a query: comparisons over ridge, at worst 1.5 points below",
                             score["comparisons"] - score["ridge"], "points", np.random.default_rng(seed), -1.5),
            effect_over_seeds("score over the mix at equal cost", [f["over the mix"] for f in found], "points"),
            effect_over_seeds(
                "agents found by the mask", less("agents found with the mask, %", "agents found without, %"),
                "points", 2.0,
            ),
            never,
        ],
        falsifier=effect_over_seeds(
            "the second with outcomes shuffled", [f["over the mix, outcomes shuffled"] for f in found], "points"
        ),
        seeds=list(seeds),
        rows=[{"what": f"two answers a query: {name}", "mean": float(rows.mean())} for name, rows in score.items()] +
        [{"what": name, "mean": float(np.mean([f[name] for f in found]))} for name in found[0]],
        notes="Parity only: learning from comparisons is no gain over a ridge on the same answers. Second version: the "
        "first judged on too few queries to tell.",
    )  # fmt: skip
