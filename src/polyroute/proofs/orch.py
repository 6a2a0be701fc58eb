"""Proof of system 54, ORCH: a moving average routes only with a context key and a small step; agreement saves money.

Claimed, five seeds, each query scored before anything is learned from it (decisions in batches of 16):
1. LLMRouter's nine models, full feedback as the paper has it: the agent of largest average worth (beta 0.02), keyed by
   the guessed task, scores more over the stream than the best fixed model in hindsight.
2. The same keyed averages score more than one average an agent (no key), and
3. than the same with beta 0.3.
4. RouterBench ARC-Challenge and WinoGrande, letters of the recorded answers: "two cheap agents that agree, else GPT-4"
   scores more than a random mix of the same cheap agent (the better of the two) and GPT-4 that costs as much.
Baselines: the best fixed model in hindsight; the unkeyed average; the random mix at equal cost.
Falsifier: claim 1 with each query given another query's context.
Shown, not claimed: what is left with bandit feedback, greedy and exploring; votes of all cheap agents, uniform and by
log odds, which cost more and lose to the best single one.
"""

from __future__ import annotations

import re

import numpy as np

from polyroute.data.recorded import recorded_answers
from polyroute.flows.cascade import recorded, run
from polyroute.flows.vote import log_odds, winners
from polyroute.offline.online import best_static, regret, replay_online
from polyroute.policies.explore import Epsilon
from polyroute.policies.greedy import Greedy
from polyroute.proofs.greenserv import misplaced
from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.proofs.tables import data_folder, full_table, held_out
from polyroute.protocols import OnlineRouter, Policy
from polyroute.recipes.orch import agree_or_ask, averages, task_contexts
from polyroute.types import Array, Objective, Outcome, Outcomes

QUALITY = Objective({"quality": 1.0})
LETTER = re.compile(r"\s*\(?([A-E])\b")
DEAR = "gpt-4-1106-preview"


def lead(
    stream: Outcomes, seed: int, router: OnlineRouter, policy: Policy | None = None, *, full_feedback: bool = True
) -> float:
    """Points a query over the best fixed model in hindsight."""
    found = replay_online(
        router,
        policy or Greedy(),
        stream,
        QUALITY,
        np.random.default_rng(seed),
        batch=16,
        full_feedback=full_feedback,
    )
    return -100 * float(regret(found, stream, QUALITY, best_static(stream, QUALITY))[-1]) / len(stream)


def routed(outcomes: Outcomes, seed: int) -> dict[str, float]:
    """Leads of the averages on one stream."""
    stream, apart = held_out(outcomes, seed, 8)
    contexts = task_contexts(apart.queries, apart.labels["dataset"])
    broken = misplaced(stream, np.random.default_rng(seed + 1))
    return {
        "keyed": lead(stream, seed, averages(contexts)),
        "one average": lead(stream, seed, averages()),
        "keyed, beta 0.3": lead(stream, seed, averages(contexts, beta=0.3)),
        "keyed, contexts of other queries": lead(broken, seed, averages(contexts)),
        "keyed, bandit feedback, greedy": lead(stream, seed, averages(contexts), full_feedback=False),
        "keyed, bandit feedback, epsilon 0.1": lead(
            stream, seed, averages(contexts), Epsilon(0.1), full_feedback=False
        ),
    }


def letters() -> Outcomes:
    """RouterBench's multiple-choice questions with each answer's letter as metric "answer" (-1: none)."""
    table = full_table("routerbench")
    table = table.take(np.isin(table.labels["dataset"], ["arc_challenge", "winogrande"]))
    text = recorded_answers(data_folder() / "outcomes" / "routerbench_responses.parquet")
    code = np.full(table.observed.shape, -1.0)
    for i, query in enumerate(table.queries):
        for j, candidate in enumerate(table.pool):
            if found := LETTER.match(text.get((query.id, candidate.id), "")):
                code[i, j] = ord(found[1]) - ord("A")
    return Outcomes(table.queries, table.pool, {**table.values, "answer": code}, table.observed, table.labels)


def letter(outcome: Outcome) -> int | None:
    code = int(outcome.metrics["answer"])
    return None if code < 0 else code


def voted(table: Outcomes, seed: int) -> dict[str, float]:
    """Mean score of votes on the held-out quarter; who votes and with what weight comes from the rest."""
    train, test = held_out(table, seed)
    quality, cost = train.values["quality"].mean(axis=0), train.values["cost"].mean(axis=0)
    dear = [c.id for c in table.pool].index(DEAR)
    cheap = np.array([j for j in range(len(table.pool)) if cost[j] < 0.2 * cost[dear]])
    cheap = cheap[np.argsort(-quality[cheap], kind="stable")]
    pair = [table.pool[int(j)] for j in cheap[:2]]
    backend = recorded(test)
    outcomes = [run(agree_or_ask(q, pair, table.pool[dear], letter), backend) for q in test.queries]
    score = float(np.mean([o.metrics["quality"] for o in outcomes]))
    paid = float(np.mean([o.metrics["cost"] for o in outcomes]))
    truth, price = test.values["quality"].mean(axis=0), test.values["cost"].mean(axis=0)
    share = np.clip((paid - price[cheap[0]]) / (price[dear] - price[cheap[0]]), 0, 1)
    mix = (1 - share) * truth[cheap[0]] + share * truth[dear]
    choices = np.where(test.labels["dataset"] == "winogrande", 2.0, 4.0)
    weights = np.maximum(log_odds(quality[cheap][None, :], choices[:, None]), 0.0)
    return {
        "two agree, else GPT-4": 100 * score,
        "random mix at equal cost": 100 * float(mix),
        "share of GPT-4's cost": 100 * paid / float(price[dear]),
        "uniform vote of the cheap": 100 * scored(test, cheap, np.ones(len(cheap))),
        "log-odds vote of the cheap": 100 * scored(test, cheap, weights),
        "best single cheap one": 100 * float(truth[cheap[0]]),
        "GPT-4": 100 * float(truth[dear]),
    }


def scored(test: Outcomes, members: Array, weights: Array) -> float:
    """Mean score of a vote of some columns."""
    member = np.maximum(winners(test.values["answer"][:, members].astype(int), weights), 0)
    return float(test.values["quality"][np.arange(len(test)), members[member]].mean())


def prove(seed: int) -> Proof:
    """Five seeded streams and five seeded splits."""
    nine, questions = full_table("llmrouter9"), letters()
    seeds = range(seed, seed + 5)
    found = [routed(nine, s) | voted(questions, s) for s in seeds]

    def over(name: str, other: str) -> list[float]:
        return [f[name] - f[other] for f in found]

    return Proof(
        id=54,
        name="ORCH",
        claim="averages keyed by the task beat any fixed model, one average does not; agreement saves the dear agent",
        baseline="best fixed model in hindsight; one average an agent; random mix at equal cost",
        effects=[
            effect_over_seeds("keyed averages over the best fixed model", [f["keyed"] for f in found], "points"),
            effect_over_seeds("keyed over one average an agent", over("keyed", "one average"), "points"),
            effect_over_seeds("beta 0.02 over 0.3", over("keyed", "keyed, beta 0.3"), "points"),
            effect_over_seeds(
                "two agree, else GPT-4, over the mix",
                over("two agree, else GPT-4", "random mix at equal cost"),
                "points",
            ),
        ],
        falsifier=effect_over_seeds(
            "the first with contexts of other queries", [f["keyed, contexts of other queries"] for f in found], "points"
        ),
        seeds=list(seeds),
        rows=[{"what": name, "mean": float(np.mean([f[name] for f in found]))} for name in found[0]],
        notes="Rows of routing are points over the best fixed model; rows of voting are scores.",
    )
