"""Proof of system 42, MulVul: fields first, then their labels; and prompts bred by one model, judged by another.

This is the third version. The first claimed, over three splits, a higher macro-F1 than the flat classifier over all
labels and over the 14 rarest, and failed at both final seeds (+1.4 points [-1.0, 3.8] and +1.5 [-0.2, 3.2] over all).
The second claimed what the specification asks, parity on frequent labels and a gain on the rarest, over twelve splits,
and failed at seed 7 (rarest +0.4 [-1.0, 1.9]; seed 0: +1.8 [0.3, 3.3]). Why: with a quarter of the table held out a
rare label has some fourteen questions, so that its F1 is mostly noise; and heads shrunk as hard as those of all 57
labels waste what is won by having fewer rivals. Changed: every question is held out once, in four folds, and F1 is over
all of them, eight partitions; the penalty of all heads, the flat classifier's too, is 0.3 in the place of 1 (on seeds
300 and 330 the flat classifier is as good on the rarest and 0.3 points better on the frequent with it). Claims,
margins, baseline and falsifier are the second's.
Claim, on the MMLU questions of the RouteLLM table with the 57 subjects as labels in four fields, seeded partitions by
group: (1) with 2 of 4 fields opened and confidences multiplied, coarse-to-fine is not more than 1 point of macro-F1
below the flat classifier of the same kind over the 43 frequent labels (non-inferiority; a point is what these notes
call nothing to speak of elsewhere too), and (2) is above it over the 14 rarest; (3) accuracy never exceeds the recall
of the true field at k, for k = 1, 2, 3, on the first fold of each partition; (4) simulated: a prompt is 12 switches, 8
of which help and 4 of which only please the generator; judged by an executor of its own and not by the generator,
evolution ends at least 5 points of true score higher, 20 runs a seed.
Baselines: the flat classifier (heads and evidence); evolution judged by the generator. Falsifier: (2) with the subjects
dealt to four fields at random, each of the size it had, in the first four partitions. The partitions are of one table:
the interval is that of the mean over partitions, not over tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.offline.evolve import evolve_prompt
from polyroute.offline.sets import f1_by_class, recall_at_k
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import each_held_out, mmlu_subjects, one_hot
from polyroute.protocols import Router
from polyroute.recipes.mulvul import coarse_to_fine, with_evidence
from polyroute.routers.coarse import CoarseToFine
from polyroute.types import Array, Candidate, Outcomes, Query, Rng

STEM = (
    "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics "
    "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
    "high_school_physics high_school_statistics machine_learning"
)
HUMANITIES = (
    "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
    "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
    "professional_law world_religions"
)
SOCIAL = (
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
    "security_studies sociology us_foreign_policy"
)
PARTITIONS, DEALT = 8, 4  # of the table; in how many of them subjects are dealt too
OPENED, RARE, NEARER, LOSS = 2, 14, 5.0, 1.0  # fields, labels, points, points
SWITCHES, HELPFUL, RUNS = 12, 8, 20


def field_of(subject: str) -> str:
    """One of four fields, as the benchmark groups its subjects."""
    for name, subjects in (("stem", STEM), ("humanities", HUMANITIES), ("social", SOCIAL)):
        if subject in subjects.split():
            return name
    return "other"


def one_seed(outcomes: Outcomes, subjects: Array, seed: int, *, deal: bool = True) -> dict[str, float]:
    """Macro-F1 over all questions, each held out once, bounds on the first fold, and what evolution reaches."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in np.unique(subjects)]
    classes = [Candidate(name, "label") for name in names]
    fields = {name: field_of(name) for name in names}
    dealt = {name: str(field) for name, field in zip(names, rng.permutation(list(fields.values())), strict=True)}
    table = one_hot(outcomes, subjects, classes)
    label = table.values["quality"].argmax(axis=1)
    rare = np.argsort(np.bincount(label, minlength=len(names)), kind="stable")[:RARE]
    said = {way: np.zeros(len(label), dtype=np.intp) for way in ("flat", "opened", "dealt")[: 3 if deal else 2]}
    found: dict[str, float] = {}
    for fold, (train, test, rows) in enumerate(each_held_out(table, seed)):
        fitted: dict[str, Router] = {"flat": with_evidence().fit(train)}
        fitted["opened"] = router = coarse_to_fine(fields, OPENED).fit(train)
        if deal:
            fitted["dealt"] = coarse_to_fine(dealt, OPENED).fit(train)
        for way, one in fitted.items():
            said[way][rows] = one.predict(test.queries, classes)["quality"].mean.argmax(axis=1)
        if fold == 0:
            found |= bounds(router, test.queries, label[rows], classes)
    for way, labels in said.items():
        found |= scores(way, label, labels, len(names), rare)
    own, other = (np.mean([evolved(rng, of_generator=g) for _ in range(RUNS)]) for g in (True, False))
    return found | {"judged by the generator": float(own), "judged by another": float(other)}


def bounds(router: CoarseToFine, queries: Sequence[Query], label: Array, classes: list[Candidate]) -> dict[str, float]:
    """Recall of the true field at k, and what accuracy has beyond it; fitting does not depend on k."""
    true = np.array([router.names.index(router.fields[classes[j].id]) for j in label])
    found = {}
    for router.k in (1, 3, OPENED):  # left as it was fitted
        mean = router.predict(queries, classes)["quality"].mean
        recall = recall_at_k(true, router.opened(queries).astype(float), router.k)
        found[f"recall at {router.k}"] = recall
        found[f"over bound {router.k}"] = float((mean.argmax(axis=1) == label).mean()) - recall
    return found


def scores(name: str, label: Array, said: Array, num_classes: int, rare: Array) -> dict[str, float]:
    f1 = f1_by_class(label, said, num_classes)
    frequent = np.setdiff1d(np.arange(num_classes), rare)
    return {
        f"{name} right": float((label == said).mean()), f"{name} macro F1": float(np.nanmean(f1)),
        f"{name} rare": float(np.nanmean(f1[rare])), f"{name} frequent": float(np.nanmean(f1[frequent])),
    }  # fmt: skip


def evolved(rng: Rng, *, of_generator: bool) -> float:
    """True score of the prompt evolution ends with. A prompt is a tuple of switches; the generator flips one or two.

    A helpful switch adds 0.08 to P(an item is right); an unhelpful one takes 0.04 away, but the generator, asked to
    judge, counts it as 0.10 more, since it is its own turn of phrase.
    """
    helps = np.arange(SWITCHES) < HELPFUL
    effect = np.where(helps, 0.08, -0.04)
    judged = np.where(helps, 0.08, 0.10) if of_generator else effect

    def mutate(prompt: tuple[int, ...], failures: Sequence[int]) -> tuple[int, ...]:
        flip = rng.choice(SWITCHES, rng.integers(1, 3), replace=False)
        return tuple(1 - on if k in flip else on for k, on in enumerate(prompt))

    def score(prompt: tuple[int, ...], items: Array) -> Array:
        chance = 0.2 + float(judged @ np.array(prompt))
        return (rng.random(len(items)) < np.clip(chance, 0.0, 1.0)).astype(float)

    found = evolve_prompt((0,) * SWITCHES, mutate, score, 400, rng=rng)
    return 0.2 + float(effect @ np.array(found.prompt))


def prove(seed: int) -> Proof:
    """Eight seeded partitions; the simulation runs in each."""
    outcomes, subjects = mmlu_subjects()
    seeds = range(seed, seed + PARTITIONS)
    found = [one_seed(outcomes, subjects, s, deal=s < seed + DEALT) for s in seeds]

    def over_flat(way: str, what: str) -> list[float]:
        return [100 * (f[f"{way} {what}"] - f[f"flat {what}"]) for f in found if f"{way} {what}" in f]

    over = max(f[f"over bound {k}"] for f in found for k in (1, 2, 3))
    bound = Effect(name="accuracy never exceeds recall of the true field", value=-over, low=-over, high=-over,
                   unit="share below", margin=-1e-9)  # fmt: skip
    nearer = [100 * (f["judged by another"] - f["judged by the generator"]) for f in found]
    effects: list[Effect] = [
        effect_over_seeds("macro-F1 over the frequent labels, at worst a point below the flat classifier",
                          over_flat("opened", "frequent"), "points", -LOSS),
        effect_over_seeds(f"macro-F1 over the flat classifier on the {RARE} rarest labels",
                          over_flat("opened", "rare"), "points"),
        bound,
        effect_over_seeds(
            "true score of the prompt bred, judged by another, 5 points or more", nearer, "points", NEARER
        ),
    ]  # fmt: skip
    rows = [
        {"way": way, **{k: mean_of(found, f"{way} {k}") for k in ("right", "macro F1", "rare", "frequent")}}
        for way in ("flat", "opened", "dealt")
    ]
    return Proof(
        id=42,
        name="MulVul",
        claim="two of four fields opened are as good as all 57 labels at once on the frequent (MMLU subjects) and "
        "better on the rarest, and a prompt judged by another model than its generator ends better (simulated)",
        baseline="a flat classifier of the same kind; evolution judged by the generator",
        effects=effects,
        falsifier=effect_over_seeds("the same on the rarest with subjects dealt to fields at random",
                                    over_flat("dealt", "rare"), "points"),
        seeds=list(seeds),
        rows=rows,
        notes="Third version. The claim on frequent labels is parity, at worst a point below. Recall of the true field "
        "at 1, 2, 3: " + ", ".join(f"{mean_of(found, f'recall at {k}'):.3f}" for k in (1, 2, 3)) + ".",
        figures={name: mean_of(found, name) for name in found[0]},
    )  # fmt: skip


def mean_of(found: list[dict[str, float]], name: str) -> float:
    return float(np.mean([f[name] for f in found if name in f]))
