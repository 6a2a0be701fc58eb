"""Proof of system 34, vLLM Semantic Router: signals and rules bring most of what knowing the data set would bring.

This is the second version. The first claimed, over five splits, that a rule a category with its best model recovers at
least 70 % of what a table by the true data set gains over the best single model. It failed at both final seeds: beyond
70 % of the gain came +0.3 points [-0.7, 1.3] at seed 7 and -0.1 [-1.0, 0.8] at seed 0. Changed, on seeds 200 to 219:
(a) the mechanism: a hard rule throws away how sure the reading of the category is, though every signal says so. Where
no form gives the category away, all models are candidates and the choice weighs each category's qualities by its share
of the exemplars (`ByDomain`), the best choice under that doubt; (b) twenty splits in the place of five.
Claim, the specification's: this recovers at least 70 % of the table's gain, as a mean over twenty splits.
Dropped before the first version's final runs and still: that the session guard, at its published constants, halves the
switches of conversations of alternating easy and hard turns and loses at most 1 point of quality. It stopped every
switch and lost 2.3 points [-0.2, 4.8]; the table still shows it (on three splits).
Data: LLMRouter's nine models on fourteen tasks, train and valid, a quarter of the groups held out by seed. The splits
overlap, so the interval says how sure the mean over splits of this table is, not what another table would show.
For the conversations: easy turns are OpenBookQA, ARC and CommonsenseQA, hard ones MATH, GSM8K and GPQA, eight turns
each; the utility of a turn is quality less 0.3 of the cost over the dearest model's mean cost, by a shrunk kNN.
Baseline: the best single model, and 70 % of the data-set table's gain over it; the first version's hard rules and a
shrunk kNN are shown. Falsifier: the same with each category's qualities learned from shuffled outcomes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from polyroute.policies.greedy import Greedy
from polyroute.policies.rules import Is, Rule, Rules
from polyroute.policies.session import Session
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out, shuffled
from polyroute.recipes.semantic_router import (
    ByDomain,
    Domains,
    SemanticRouter,
    Signal,
    Way,
    best_of,
    rules_in_doubt,
    rules_of,
)
from polyroute.routers.knn import KNN
from polyroute.routers.mix import Together
from polyroute.signals.matches import TextSignal, pattern
from polyroute.types import Array, Objective, Outcomes, Query

FORMS = {  # data set -> what its form gives away; looked up before the exemplars
    "human_eval": r'\bdef \w+\([^)]*\)[^:]*:\s*\n\s+("""|\'\'\')',
    "mbpp": r"^\s*write a (python )?function",
    "logicgrid": r"houses in a row",
    "math": r"\$[^$]*\\|\\frac|\\text|\$[a-z0-9]+\$",
    "commongen": r"^\w+(, ?\w+){6,}",
}
EASY, HARD = ("openbook_qa", "arc_challenge", "commonsense_qa"), ("math", "gsm8k", "gpqa")
SHARE = 0.7  # of the data-set table's gain
SPLITS, TALKED = 20, 3  # of the latter, conversations too
CONVERSATIONS, TURNS = 60, 8
TRADE_OFF = 0.3


def on_text(signal: TextSignal) -> Signal:
    return lambda query: signal(query.text)


def router_for(train: Outcomes, learned: Outcomes, hard: bool = False) -> SemanticRouter:
    """Signals from `train`, what each category's models are worth from `learned`. hard: only the best of each."""
    labels = train.labels["dataset"]
    best, domains = best_of(learned, labels), Domains(train.queries, labels)
    single = (learned.pool[int(learned.values["quality"].mean(axis=0).argmax())].id,)
    forms = tuple(
        Rule(name=f"form {name}", when=Is(f"form:{name}"), candidates=best[name][:1], priority=10)
        for name in FORMS
        if name in best
    )
    ids = [candidate.id for candidate in train.pool]
    rest = rules_of(best, single) if hard else rules_in_doubt(domains, ids, single)
    signals = {f"form:{name}": on_text(pattern(form)) for name, form in FORMS.items()}
    way = Way(ByDomain(domains).fit(learned), Greedy(), Objective({"quality": 1.0}))
    return SemanticRouter(Rules((*forms, *rest.rules), single), train.pool, signals, [domains], ways={"by domain": way})


def mean_score(router: SemanticRouter, test: Outcomes) -> float:
    column = {candidate.id: j for j, candidate in enumerate(test.pool)}
    chosen = [column[router.route(query).decision.candidate_ids[0]] for query in test.queries]
    return float(test.values["quality"][np.arange(len(test)), chosen].mean())


def table_score(train: Outcomes, test: Outcomes) -> float:
    """What knowing each query's data set yields."""
    best, column = best_of(train, train.labels["dataset"]), {c.id: j for j, c in enumerate(test.pool)}
    single = test.pool[int(train.values["quality"].mean(axis=0).argmax())].id
    chosen = [column[best.get(str(name), (single,))[0]] for name in test.labels["dataset"]]
    return float(test.values["quality"][np.arange(len(test)), chosen].mean())


def conversations(train: Outcomes, test: Outcomes, rng: np.random.Generator) -> dict[str, float]:
    """Switches a conversation and mean quality, with and without the session guard."""
    dearest = float(train.values["cost"].mean(axis=0).max())
    ids = tuple(candidate.id for candidate in train.pool)
    way = Way(
        Together([KNN(), KNN(metric="cost")]).fit(train), Greedy(),
        Objective({"quality": 1.0, "cost": -TRADE_OFF / dearest}),
    )  # fmt: skip
    router = SemanticRouter(
        Rules((Rule(name="all", when=Is("any"), candidates=ids, choose="knn"),), ids[:1]),
        train.pool, {"any": lambda query: (True, 1.0)}, ways={"knn": way},
    )  # fmt: skip
    easy, hard = (np.flatnonzero(np.isin(test.labels["dataset"], names)) for names in (EASY, HARD))
    found = dict.fromkeys(("switches", "guarded switches", "quality", "guarded quality"), 0.0)
    for _ in range(CONVERSATIONS):
        turns = [int(rng.choice(hard if turn % 2 else easy)) for turn in range(TURNS)]
        for name, guarded in (("", False), ("guarded ", True)):
            chosen = talk(router, [test.queries[i] for i in turns], guarded)
            quality = [test.values["quality"][i, ids.index(c)] for i, c in zip(turns, chosen, strict=True)]
            switches = sum(a != b for a, b in pairwise(chosen))
            found[f"{name}switches"] += switches / CONVERSATIONS
            found[f"{name}quality"] += float(np.mean(quality)) / CONVERSATIONS
    return found


def talk(router: SemanticRouter, turns: list[Query], guarded: bool) -> list[str]:
    """Who serves each turn of a conversation, ten seconds apart."""
    chosen: list[str] = []
    session: Session | None = None
    for i, query in enumerate(turns):
        name = router.route(query, session if guarded else None, now_s=10.0 * i).decision.candidate_ids[0]
        served = session.turns + 1 if session is not None and session.current == name else 1
        session = Session(name, 10.0 * i, served)
        chosen.append(name)
    return chosen


def one_seed(outcomes: Outcomes, seed: int, talked: bool) -> dict[str, float]:
    """Mean scores on the held-out queries, and, where asked for, the conversations."""
    train, test = held_out(outcomes, seed)
    rng = np.random.default_rng(seed)
    quality: Array = test.values["quality"]
    neighbours = KNN(k=50, kappa=50.0).fit(train).predict(test.queries, test.pool)["quality"].mean.argmax(axis=1)
    return {
        "best single": float(quality[:, int(train.values["quality"].mean(axis=0).argmax())].mean()),
        "rules": mean_score(router_for(train, train), test),
        "hard rules": mean_score(router_for(train, train, hard=True), test),
        "shuffled": mean_score(router_for(train, shuffled(train, rng)), test),
        "data-set table": table_score(train, test),
        "kNN": float(quality[np.arange(len(test)), neighbours].mean()),
        **(conversations(train, test, rng) if talked else {}),
    }


def prove(seed: int) -> Proof:
    """Twenty seeded splits; near-duplicates never on both sides."""
    outcomes = full_table("llmrouter9")
    seeds = range(seed, seed + SPLITS)
    found = [one_seed(outcomes, s, i < TALKED) for i, s in enumerate(seeds)]
    means = {name: float(np.mean([f[name] for f in found if name in f])) for name in found[0]}

    def beyond(name: str) -> list[float]:
        table = [SHARE * (f["data-set table"] - f["best single"]) for f in found]
        return [100 * (f[name] - f["best single"] - t) for f, t in zip(found, table, strict=True)]

    over = [100 * (f["rules"] - f["best single"]) for f in found]
    effects: list[Effect] = [
        effect_over_seeds("rules over the best single model", over, "points"),
        effect_over_seeds("rules beyond 70 % of the data-set table's gain", beyond("rules"), "points"),
    ]
    share = (means["rules"] - means["best single"]) / (means["data-set table"] - means["best single"])
    return Proof(
        id=34,
        name="vLLM Semantic Router",
        claim="rules over signals, with the doubt of the reading weighed in, recover 70 % of what a table by the true "
        "data set gains over the best single model (second version)",
        baseline="best single model; 70 % of the gain of the table by true data set",
        effects=effects,
        falsifier=effect_over_seeds("the same rules learned from shuffled outcomes", beyond("shuffled"), "points"),
        seeds=list(seeds),
        notes=f"The share of the table's gain recovered is {100 * share:.0f} %. The session guard at its published "
        "constants stops every switch and costs quality here: see the table.",
        rows=[{"what": name, "mean": value} for name, value in means.items()],
        figures=means,
    )
