"""Proof of system 14, GEM and SCAR: the metrics find a specialist, and attention to two domains is as good as to eight.

Claim 1, LLMRouter's nine models, tasks as four domains (code, maths, questions, reasoning): codegemma-7b against the
general model of its family, gemma-2-9b-it: its DSI is greatest in code, by more than in any other domain (over
resamples of groups); its gain gap is above 0; and it has paid: its mean gain outside code is negative. The ratio CDTR
needs a gain at home outside noise, and is shown, as is where each model is at home by DSI.
Claim 2, simulated: texts of 12 noisy tokens of eight Gaussian domains. The router that attends to two prototypes finds
the domain within one point of the one that attends to all eight (non-inferiority, each trained for its own k), at a
quarter of the value compute.
Baseline: the base model of the family; dense attention.
Falsifier: the domains shuffled over queries; the gain gap must vanish.
No claim is made of the paper's accuracies. The pair is not base and tuned copy but two models of one family; the
table has nothing nearer.
"""

from __future__ import annotations

import numpy as np

from polyroute.offline.bootstrap import resample_counts
from polyroute.offline.specialise import Figure
from polyroute.offline.split import groups_of
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table
from polyroute.recipes.specialist import audit, domain_router, domains_of, home
from polyroute.types import Array

SPECIAL, BASE, TARGET = "codegemma-7b", "gemma-2-9b-it", "code"
OTHERS = (
    ("llama3-chatqa-1.5-8b", "llama-3.1-8b-instruct"),
    ("llama3-chatqa-1.5-70b", "llama-3.1-nemotron-51b-instruct"),
)
DOMAINS = {
    "mbpp": "code", "human_eval": "code", "gsm8k": "maths", "math": "maths", "mgsm": "maths", "gpqa": "reasoning",
    "logicgrid": "reasoning", "arc_challenge": "questions", "commonsense_qa": "questions", "mmlu": "questions",
    "openbook_qa": "questions", "natural_qa": "questions", "trivia_qa": "questions",
}  # fmt: skip
NUM_DOMAINS, TOKENS, WIDTH = 8, 12, 24


def texts(num: int, centres: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """[n, t, d] tokens scattered about the centre of each text's domain, and the domain [n]."""
    domain = rng.integers(NUM_DOMAINS, size=num)
    return centres[domain][:, None] + 1.6 * rng.normal(size=(num, TOKENS, WIDTH)), domain


def found_domain(seed: int) -> dict[str, float]:
    """Share of held-out texts whose domain has the greatest routing weight, by how many prototypes are attended to."""
    rng = np.random.default_rng(seed)
    centres = 0.6 * rng.normal(size=(NUM_DOMAINS, WIDTH))
    (train, learn), (test, truth) = texts(600, centres, rng), texts(1000, centres, rng)
    found = {}
    for k in (2, NUM_DOMAINS):
        share = domain_router(k=k, seed=seed).fit(train, learn).route(test)
        found[f"{k} of {NUM_DOMAINS}"] = float((share.argmax(axis=1) == truth).mean())
    return found


def effect_of(name: str, figure: Figure, unit: str) -> Effect:
    return Effect(name=name, value=figure.value, low=figure.interval.low, high=figure.interval.high, unit=unit)


def home_lead(y: Array, domains: Array, groups: Array, rng: np.random.Generator) -> Effect:
    """DSI in the target domain less the greatest DSI elsewhere, bootstrap over groups. y: [n]."""
    names = np.unique(domains)
    member = (domains[None] == names[:, None]).astype(float)
    counts = np.vstack([np.ones((1, len(y))), resample_counts(len(y), 1000, rng, groups)])
    mean = (counts @ (member * y).T) / (counts @ member.T)  # [1 + b, k]
    index = mean / ((mean.sum(axis=1, keepdims=True) - mean) / (len(names) - 1))
    at = int(np.flatnonzero(names == TARGET)[0])
    lead = index[:, at] - np.delete(index, at, axis=1).max(axis=1)
    low, high = np.percentile(lead[1:], [2.5, 97.5])
    name = f"DSI of {SPECIAL} in {TARGET} over its greatest elsewhere"
    return Effect(name=name, value=float(lead[0]), low=float(low), high=float(high), unit="index")


def prove(seed: int) -> Proof:
    """Metrics on all train and valid queries, one bootstrap; the router on five seeds."""
    outcomes, domains = domains_of(full_table("llmrouter9"), DOMAINS)
    rng = np.random.default_rng(seed)
    report = audit(outcomes, SPECIAL, BASE, domains, TARGET, rng)
    mixed = audit(outcomes, SPECIAL, BASE, rng.permutation(domains), TARGET, rng)
    column = {c.id: j for j, c in enumerate(outcomes.pool)}
    quality = outcomes.values["quality"]
    away = domains != TARGET
    loss = 100 * (quality[away, column[BASE]] - quality[away, column[SPECIAL]])
    seeds = range(seed, seed + 5)
    runs = [found_domain(s) for s in seeds]
    gap = [100 * (run[f"2 of {NUM_DOMAINS}"] - run[f"{NUM_DOMAINS} of {NUM_DOMAINS}"]) for run in runs]
    names, counts = np.unique(domains), resample_counts(int(away.sum()), 1000, rng, groups_of(outcomes)[away])
    low, high = np.percentile(counts @ loss / counts.sum(axis=1), [2.5, 97.5])
    effects = [
        home_lead(quality[:, column[SPECIAL]], domains, groups_of(outcomes), rng),
        effect_of(f"gain gap of {SPECIAL} over {BASE}", report.gg, "score"),
        Effect(name="what it lost outside code", value=float(loss.mean()), low=float(low), high=float(high),
               unit="points"),
        effect_over_seeds("two prototypes against all eight, simulated", gap, "points", margin=-1.0),
    ]  # fmt: skip
    rows = []
    for special, base in ((SPECIAL, BASE), *OTHERS):
        target = TARGET if special == SPECIAL else "questions"
        found = audit(outcomes, special, base, domains, target, rng)
        row: dict[str, str | float] = {"special": special, "claimed home": target}
        row |= {"home by DSI": home(outcomes, special, domains), "base's home": home(outcomes, base, domains)}
        row |= {"DSI": found.dsi.value, "GG": found.gg.value, "CDTR": found.cdtr.value}
        rows.append(row | {str(d): found.special[str(d)] for d in names})
    figures = {f"found, {name}": float(np.mean([run[name] for run in runs])) for name in runs[0]}
    return Proof(
        id=14,
        name="GEM/SCAR",
        claim="DSI and GG find a code specialist's home and its price; attention to two of eight domains loses nothing",
        baseline="the general model of the same family; dense attention",
        effects=effects,
        falsifier=effect_of("gain gap with the domains shuffled over queries", mixed.gg, "score"),
        seeds=list(seeds),
        rows=rows,
        notes="Metrics and router only: no claim of the paper's accuracies. DSI alone takes an easy domain for a home "
        "(see the rows); GG, against a base, does not. Two prototypes match eight; they do not beat them.",
        figures=figures | {"DSI in code": report.dsi.value},
    )
