"""Proof of system 53, Fast and Faithful: check an answer against all of its source, or what is behind the cut is lost.

Second version. The first claimed the same five things over three seeds and failed at seed 7 by the fourth: +22 points
[12, 32] where 15 were claimed, an interval of a Student t with two degrees of freedom (4.3 standard errors); at seed
0 it was not run. Changed: ten seeds instead of three, 480 documents instead of 144, because the mean was never in
doubt and the width was the number of seeds. No margin, baseline, falsifier or part of the mechanism was changed. The
spec asks for less than the fourth claim, that escalation raises precision at all.

A simulation, written before the first run below seed 100. Sources of 2k to 20k tokens are made of recorded prompts in
random order; 5 facts ("the Orlen gauge read 73 metres in 1948") are put at random depths. An answer restates each fact
in other words; three in ten of its sentences are corrupted: another number, another name, or a fact never planted.
Claimed: (1) of faithful sentences the full reading accepts at least 95 %, whatever the length (worst length counts);
(2) a reading of the first 2k tokens accepts just those whose evidence lies before the cut: its loss against the full
reading is within 5 points of the share of faithful sentences planted behind the cut, at every length (one effect);
(3) of corrupted sentences the full reading flags at least 90 %;
(4) small model first (30 % corrupted), large model (5 %) where a sentence is flagged: accepted sentences are right more
often than the small model's alone by at least 15 points, at a reported extra cost; (5) the depth policy never exceeds
its budget and never loses quality for a larger one.
Baseline: the truncated reading for (1), the unverified small model for (4). Falsifier: the verifier without its checks
of numbers and names must not reach (3).
Not claimed: anything on paraphrase or logic; the planted wording differs only in order and inflection.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.data.columns import read_columns
from polyroute.flows.cascade import run
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import data_folder
from polyroute.recipes.faithful import CHARACTERS_PER_TOKEN, grounded
from polyroute.signals.grounding import Depth, GroundingVerifier, choose_depth
from polyroute.types import Candidate, Decision, Outcome, Query, Rng

LENGTHS = (2_000, 5_000, 10_000, 20_000)  # tokens
CUT = 2_000
DOCUMENTS, FACTS, CORRUPT, LARGE_CORRUPT = 12, 5, 0.3, 0.05
PRICE = {"small": 1.0, "large": 20.0}
THINGS = ("gauge", "bridge", "archive", "mill", "tower", "quarry", "harbour", "orchard")
MEASURES = ("metres", "tonnes", "visitors", "litres", "volumes", "degrees")
SYLLABLES = ("or", "len", "ka", "tir", "bes", "mon", "vel", "dra", "sul", "qui", "fen", "zor")


class Fact(NamedTuple):
    name: str
    thing: str
    measure: str
    amount: int
    year: int
    place: float  # share of the source before it

    def planted(self) -> str:
        return f"Records say the {self.thing} of {self.name} counted {self.amount} {self.measure} in {self.year}."

    def told(self) -> str:
        return f"In {self.year} the {self.thing} of {self.name} counts {self.amount} {self.measure}."


def invented(rng: Rng) -> Fact:
    name = "".join(rng.choice(SYLLABLES, size=3)).capitalize()
    return Fact(name, str(rng.choice(THINGS)), str(rng.choice(MEASURES)), int(rng.integers(100, 999)),
                int(rng.integers(1801, 1999)), float(rng.random()))  # fmt: skip


def corrupted(fact: Fact, rng: Rng) -> Fact:
    """Another number, another name, or another fact altogether."""
    other = invented(rng)
    kind = rng.integers(3)
    return (
        fact._replace(amount=other.amount + 1000)
        if kind == 0
        else fact._replace(name=other.name)
        if kind == 1
        else other
    )


def document(texts: list[str], tokens: int, facts: list[Fact], rng: Rng) -> tuple[str, list[int]]:
    """A source of about so many tokens, and the character at which each fact was put."""
    wanted, parts, size = tokens * CHARACTERS_PER_TOKEN, [], 0
    while size < wanted:
        parts.append(texts[rng.integers(len(texts))].strip() + ".\n")
        size += len(parts[-1])
    for fact in sorted(facts, key=lambda f: f.place):
        at = int(fact.place * len(parts))
        parts.insert(at, fact.planted() + "\n")
    source = "".join(parts)
    return source, [source.index(fact.planted()) for fact in facts]


def one_seed(texts: list[str], seed: int) -> dict[str, float]:
    """Shares of accepted and flagged sentences by reading and length; precision of the cascade."""
    rng = np.random.default_rng(seed)
    readers = {
        "full": GroundingVerifier(), "first 2k": GroundingVerifier(limit=CUT * CHARACTERS_PER_TOKEN),
        "words only": GroundingVerifier(penalty=1.0),
    }  # fmt: skip
    accepted: dict[tuple[str, int, bool], list[bool]] = {}
    behind: dict[int, list[bool]] = {length: [] for length in LENGTHS}
    kept: dict[str, list[float]] = {"small": [], "cascade": [], "cost": []}
    for length in LENGTHS:
        for _ in range(DOCUMENTS):
            facts = [invented(rng) for _ in range(FACTS)]
            source, places = document(texts, length, facts, rng)
            answers: dict[str, tuple[str, list[bool]]] = {}
            for model, rate in (("small", CORRUPT), ("large", LARGE_CORRUPT)):
                wrong = [bool(w) for w in rng.random(FACTS) < rate]
                said = [corrupted(f, rng) if w else f for f, w in zip(facts, wrong, strict=True)]
                if model == "small":
                    ends = (place + len(f.planted()) for f, place in zip(facts, places, strict=True))
                    behind[length] += [
                        end > CUT * CHARACTERS_PER_TOKEN for end, w in zip(ends, wrong, strict=True) if not w
                    ]
                answers[model] = " ".join(f.told() for f in said), wrong
            for name, reader in readers.items():
                spans = reader.check(answers["small"][0], [source])
                for span, wrong_one in zip(spans, answers["small"][1], strict=True):
                    accepted.setdefault((name, length, wrong_one), []).append(span.support >= reader.threshold)
            follow(source, answers, kept)
    found = {f"cut {n}": 100 * float(np.mean(behind[n])) for n in LENGTHS}
    for (name, length, wrong_one), values in accepted.items():
        found[f"{name} {'flags' if wrong_one else 'accepts'} {length}"] = 100 * abs(wrong_one - float(np.mean(values)))
    return found | {name: float(np.mean(values)) for name, values in kept.items()}


def follow(source: str, answers: dict[str, tuple[str, list[bool]]], kept: dict[str, list[float]]) -> None:
    """One document through the cascade: share of right sentences in the answer kept, and what it cost."""

    def backend(decision: Decision) -> Outcome:
        model = decision.candidate_ids[0]
        return Outcome(
            decision, {"cost": PRICE[model], "quality": 1 - float(np.mean(answers[model][1]))}, answers[model][0]
        )

    outcome = run(grounded(Query("d"), [Candidate("small"), Candidate("large")], [source]), backend)
    kept["small"].append(100 * (1 - float(np.mean(answers["small"][1]))))
    kept["cascade"].append(100 * outcome.metrics["quality"])
    kept["cost"].append(outcome.metrics["cost"])


def depth_faults(rng: Rng) -> int:
    """How often the depth policy spends more than its budget, or a larger budget yields less."""
    faults = 0
    for _ in range(500):
        depths = [Depth(str(i), 5 * rng.random(), 0.01 * rng.random(), rng.random()) for i in range(4)]
        tokens, last = int(rng.integers(1, 20_000)), -1.0
        for budget in np.sort(rng.uniform(0, 200, 6)):
            chosen = choose_depth(depths, tokens, budget)
            faults += chosen is not None and chosen.latency(tokens) > budget
            quality = -1.0 if chosen is None else chosen.quality
            faults += quality < last
            last = quality
    return faults


def prove(seed: int) -> Proof:
    """Ten seeds of 12 documents at each of four lengths."""
    columns = read_columns(data_folder() / "prompts" / "route_balance.parquet", ("prompt",))
    texts = [text for text in columns.text("prompt").values if 40 < len(text) < 4000]
    seeds = range(seed, seed + 10)
    found = [one_seed(texts, s) for s in seeds]

    def worst(name: str) -> list[float]:
        return [min(f[f"{name} {n}"] for n in LENGTHS) for f in found]

    slips = [
        max(abs(f[f"full accepts {n}"] - f[f"first 2k accepts {n}"] - f[f"cut {n}"]) for n in LENGTHS) for f in found
    ]  # fmt: skip
    faults = float(depth_faults(np.random.default_rng(seed)))
    gain = [f["cascade"] - f["small"] for f in found]
    rows = [{"tokens": n, **{k: float(np.mean([f[f"{k} {n}"] for f in found])) for k in ROWS}} for n in LENGTHS]
    return Proof(
        id=53,
        name="Fast and Faithful",
        claim="a check that reads all of the source finds what a cut one cannot, and escalation on it pays",
        baseline="a reading of the first 2k tokens; for the cascade, the small model unchecked",
        effects=[
            effect_over_seeds("faithful sentences accepted, worst length", worst("full accepts"), "percent", 95.0),
            effect_over_seeds("loss of the cut reading less the share behind the cut, largest over lengths",
                              [-s for s in slips], "points", -5.0),
            effect_over_seeds("corrupted sentences flagged at the worst length", worst("full flags"), "percent", 90.0),
            effect_over_seeds("right sentences, cascade over the small model", gain, "points", 15.0),
            Effect(name="depths over budget or worse for more", value=-faults, low=-faults, high=-faults,
                   unit="cases", margin=-0.5),
        ],
        falsifier=effect_over_seeds("corrupted sentences flagged without numbers and names", worst("words only flags"),
                                    "percent", 90.0),
        seeds=list(seeds),
        rows=rows,
        figures={name: float(np.mean([f[name] for f in found])) for name in ("small", "cascade", "cost")},
        notes="facts and their wording are made up; cost is in units of a small call, a large one costs 20. "
        "Second version: ten seeds instead of three.",
    )  # fmt: skip


ROWS = ("full accepts", "first 2k accepts", "cut", "full flags", "words only flags")
