"""Proof of system 81, guarded query routing: own domains are told apart and eight unseen families are turned away.

Claim: with the edge set by 5 % of own held-out queries and no foreign text used for anything, the default novelty
router has a higher GQR score than the either-or guard of n-grams and one above 0.863, and is no worse than the largest
n-gram probability with the same edge for each domain. (That it beats this one too was a claim on seeds of 100 and
above, did not hold there, by +0.4 points [-0.2, +0.9], and was dropped.)
Data: own are the GSM8K, MMLU and MBPP questions of all tables, train and valid splits, a quarter of the groups held
out by seed. Foreign are C-Eval, CMMLU, TriviaQA, natural questions, CommonGen, logic grids, competition mathematics
and HumanEval: their train and valid queries, 500 each at most, which nothing here is fitted to or chosen on.
Baselines: character n-grams, logistic heads (the largest probability) or vocabulary coverage, each turning away 2.5 %,
the either-or guard that the notes on this system measured at 0.863; and the largest probability alone, with an edge of
5 % for each domain as the claim has it: the harder one, to which it may lose 1 point at most.
Falsifier: the same router, fitted and asked with each query's embedding replaced by that of a query drawn at random.
Choice: detectors and their settings by leaving one own domain out of GSM8K, MMLU and MBPP and counting how much of it
is turned away (mean of the three: probability .65, coverage .38, distance .99, spread .97, distance and spread .996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from polyroute.data.outcomes import load_outcomes
from polyroute.offline.split import group_folds, groups_of
from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.proofs.tables import data_folder
from polyroute.recipes.guarded import REJECTED, GuardedRouter, domain_outcomes, gqr_score
from polyroute.routers.novelty import Novelty
from polyroute.signals import featuriser
from polyroute.types import Array, Query

OWN = ("gsm8k", "mbpp", "mmlu")
TABLES = ("routerbench", "llmrouter9", "routellm", "routerdc7")
FOREIGN = {
    "C-Eval": ("routerdc7", "ceval"), "CMMLU": ("routerdc7", "cmmlu"), "trivia": ("llmrouter9", "trivia_qa"),
    "web questions": ("llmrouter9", "natural_qa"), "words to sentence": ("llmrouter9", "commongen"),
    "logic grids": ("llmrouter9", "logicgrid"), "competition maths": ("llmrouter9", "math"),
    "code docstrings": ("routerdc7", "humaneval"),
}  # fmt: skip
PILOT = 0.863  # GQR score of the either-or guard in the notes on this system
MOST = 500  # queries of a foreign family
SHARE = 0.05  # of own queries turned away


class Texts(NamedTuple):
    """Queries with what they are about and which near-duplicates they belong to."""

    queries: list[Query]
    domains: Array  # [n]
    groups: Array  # [n]


def texts_of(table: str, datasets: Sequence[str]) -> Texts:
    """The embedded queries of some data sets of a table, train and valid splits."""
    outcomes = load_outcomes(data_folder() / "outcomes" / f"{table}.parquet")
    keep = np.isin(outcomes.labels["dataset"], list(datasets)) & (outcomes.labels["split"] != "test")
    outcomes = outcomes.take(keep)
    x = featuriser("static-1")([query.text for query in outcomes.queries])
    queries = [replace(query, embedding=row) for query, row in zip(outcomes.queries, x, strict=True)]
    return Texts(queries, outcomes.labels["dataset"], groups_of(outcomes))


def joined(parts: Sequence[Texts]) -> Texts:
    queries = [query for part in parts for query in part.queries]
    return Texts(queries, np.concatenate([p.domains for p in parts]), np.concatenate([p.groups for p in parts]))


def misplaced(queries: Sequence[Query], donors: Sequence[Query], rng: np.random.Generator) -> list[Query]:
    """The queries with embeddings of donors drawn at random."""
    drawn = rng.integers(len(donors), size=len(queries))
    return [replace(q, embedding=donors[int(i)].embedding) for q, i in zip(queries, drawn, strict=True)]


def guards(train: Sequence[Query], domains: Sequence[str], groups: Sequence[str]) -> dict[str, GuardedRouter]:
    """The claim and what it is held against, fitted."""
    novelty = GuardedRouter(Novelty(reject=SHARE)).fit(train, domains, groups)
    likely = GuardedRouter(Novelty(["probability"], SHARE)).fit(train, domains, groups)
    covered = GuardedRouter(Novelty(["coverage"], SHARE)).fit(train, domains, groups)
    either = GuardedRouter(likely.novelty.at(SHARE / 2), [covered.novelty.at(SHARE / 2)])
    either.pool_ = likely.pool_
    return {"novelty": novelty, "either-or": either, "probability": likely}


def one_seed(own: Texts, foreign: dict[str, list[Query]], seed: int) -> dict[str, dict[str, Any]]:
    """Scores of each guard on a held-out quarter and the foreign sets."""
    out = group_folds(own.groups, 4, seed) == 0
    train, test = ([own.queries[int(i)] for i in np.flatnonzero(rows)] for rows in (~out, out))
    domains, groups, truth = own.domains[~out], own.groups[~out], np.searchsorted(OWN, own.domains[out])
    found = {}
    for name, guard in guards(train, domains, groups).items():
        found[name] = gqr_score(truth, guard.predict(test), {f: guard.predict(q) for f, q in foreign.items()})
        if name == "probability":
            found["probability at 0.5"] = fixed(guard, truth, test, foreign)
    rng = np.random.default_rng(seed)
    donors = [*own.queries, *(query for queries in foreign.values() for query in queries)]
    broken = GuardedRouter(Novelty(reject=SHARE)).fit(misplaced(train, donors, rng), domains, groups)
    lost = {name: broken.predict(misplaced(queries, donors, rng)) for name, queries in foreign.items()}
    found["misplaced"] = gqr_score(truth, broken.predict(misplaced(test, donors, rng)), lost)
    return found


def fixed(guard: GuardedRouter, truth: Array, test: Sequence[Query], foreign: dict[str, list[Query]]) -> dict[str, Any]:
    """The naive guard: the same probabilities, turned away below 0.5."""

    def predict(queries: Sequence[Query]) -> Array:
        assert guard.novelty.parts_ is not None
        doubt = guard.novelty.parts_[0].score(queries)  # 1 - probability
        return np.where(doubt.min(axis=1) > 0.5, REJECTED, doubt.argmin(axis=1))

    return gqr_score(truth, predict(test), {name: predict(queries) for name, queries in foreign.items()})


def prove(seed: int) -> Proof:
    """Five seeded splits of the own questions; the foreign families are the same for all."""
    own = joined([texts_of(table, OWN) for table in TABLES])
    assert tuple(c.id for c in domain_outcomes(own.queries, own.domains.tolist()).pool) == OWN
    foreign = {name: texts_of(table, [dataset]).queries[:MOST] for name, (table, dataset) in FOREIGN.items()}
    seeds = range(seed, seed + 5)
    found = [one_seed(own, foreign, s) for s in seeds]

    def over(name: str, other: str) -> list[float]:
        return [100 * (f[name]["gqr"] - f[other]["gqr"]) for f in found]

    above = [100 * (f["novelty"]["gqr"] - PILOT) for f in found]
    rows = [
        {"guard": name}
        | {key: float(np.mean([f[name][key] for f in found])) for key in ("own", "foreign", "gqr")}
        | {set_: float(np.mean([f[name]["rejected"][set_] for f in found])) for set_ in FOREIGN}
        for name in found[0]
    ]
    return Proof(
        id=81,
        name="GQR",
        claim="distance and spread in a static embedding, edge at 5 % of own queries, guard better than n-gram guards",
        baseline="n-gram probability or coverage (either-or), 2.5 % each; n-gram probability, 5 % of each domain",
        effects=[
            effect_over_seeds("GQR score over the either-or guard", over("novelty", "either-or"), "points"),
            effect_over_seeds(
                "GQR score over probability alone, no worse than 1 point",
                over("novelty", "probability"),
                "points",
                margin=-1.0,
            ),
            effect_over_seeds(f"GQR score over {PILOT}", above, "points"),
        ],
        falsifier=effect_over_seeds(
            "the same with embeddings of other queries", over("misplaced", "either-or"), "points"
        ),
        seeds=list(seeds),
        rows=rows,
        notes="It does not beat the n-gram probability with the same edges: the edge for each domain does most of it.",
        figures={f"{name} gqr": float(np.mean([f[name]["gqr"] for f in found])) for name in found[0]},
    )
