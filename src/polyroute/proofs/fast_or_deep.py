"""Proof of system 26, a fast and a deep tier: a gate from judged pairs, and the same from what users do.

This is the second version. The first claimed half of the offline gain online, over five splits, and missed it by the
interval at seed 0 (+2.1 points [-0.2, 4.4] beyond the half); and a mean P(deep wins) from switches alone at most 8
points off, which failed at seed 7 (10 points off [-4.5, 24.9]). Why: steps of 12 / sqrt(t), with labels of 1 / (report
rate) weighed by up to 19 times another's, so that one rare event moved the gate by logits; and a report rate from some
55 turns that deep would have won. Changed: the gate moves to the mode of its posterior with the likelihood of a switch
itself (P = report rate * P(deep wins)) in the place of a scaled label, under a prior that expects logits of about 0.6;
inverse propensities are capped at 5; the report rate comes from 1,000 audited turns in the place of 300; twenty splits
for five. Claim (2) is 80 % of the offline gain in the place of 50; the 90 % that the specification hopes for is not
claimed, since a gate fitted offline on the audited turns alone reaches only some 93 %.
Mixtral is fast, GPT-4 deep; the RouteLLM table, seeded splits by group. Claim: (1) ordering held-out queries by the
gate fitted on judged pairs has a higher APGR (mean share of the gap between the two recovered, over all shares of deep
calls) than a random order; (2) from a gate that knows nothing, one pass over the training queries, in which a turn is
audited (both judged) with probability 0.4, compared by its user with 0.2 (wrong in a fifth), and switched away from
fast by 0.3 of those whom deep would have served better, reaches at least 80 % of the offline gate's gain over random;
(3) from switches alone, users of whom only the dissatisfied switch, the gate with inverse propensities puts the mean
P(deep wins) on held-out queries at most 8 points from the truth.
Baselines: random order; the offline gate; a shrunk kNN in the rows, which the gate is not claimed to beat. Falsifier:
(3) with each switch taken as a plain label. Users are simulated; quality is the table's; its costs are estimates and
not claimed. The splits overlap: the interval is that of the mean over splits of this table.
"""

from __future__ import annotations

import numpy as np

from polyroute.offline.pairs import pair_summary, weak_and_strong
from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.proofs.tables import full_table, held_out
from polyroute.routers.gate import ThinkGate, report_rate_of
from polyroute.routers.knn import KNN
from polyroute.types import Array, Outcomes, Rng

AUDITED, COMPARED, MISTAKEN, SWITCH = 0.4, 0.2, 0.2, 0.3
AUDITS = 1000  # turns from which the report rate is estimated
SHARE, OFF = 0.8, 8.0  # of the gain, points
SPLITS = 20


def live(gate: ThinkGate, outcomes: Outcomes, gain: Array, rng: Rng, *, switches_only: bool = False) -> ThinkGate:
    """One pass of users over the queries: the gate serves, they react, it learns."""
    for i in rng.permutation(len(outcomes)):
        turn = gate.decide(outcomes.queries[int(i)], rng)
        switched = turn.tier == "fast" and gain[i] > 0 and rng.random() < SWITCH
        audit, told, preferred = None, rng.random(), None
        if not switches_only and told < AUDITED:
            audit = float(gain[i])
        elif not switches_only and told < AUDITED + COMPARED and gain[i] != 0:
            right = rng.random() >= MISTAKEN
            preferred = "deep" if (gain[i] > 0) == right else "fast"
        gate.feedback(turn, gain=audit, preferred=preferred, switched=switched)
    return gate


def one_seed(outcomes: Outcomes, weak: int, strong: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    train, test = held_out(outcomes, seed)
    gain, truth = (t.values["quality"][:, strong] - t.values["quality"][:, weak] for t in (train, test))
    sample = rng.choice(len(train), AUDITS, replace=False)
    rate = report_rate_of(gain[sample], (gain[sample] > 0) & (rng.random(AUDITS) < SWITCH))
    near = KNN().fit(train).predict(test.queries, test.pool)["quality"].mean
    bar = float((gain > 0).mean())
    gates = {"offline": ThinkGate().fit(train.queries, gain)}
    gates["online"] = live(new_gate(train, bar, rate), train, gain, rng)
    for name, ipw in (("switches, IPW", True), ("switches, plain", False)):
        gates[name] = live(new_gate(train, bar, rate, ipw=ipw), train, gain, rng, switches_only=True)
    chance = {name: gate.chance(test.queries) for name, gate in gates.items()}
    found = {f"APGR {name}": pair_summary(p, truth).apgr for name, p in chance.items()}
    found["APGR kNN"] = pair_summary(near[:, strong] - near[:, weak], truth).apgr
    found |= {f"mean {name}": float(p.mean()) for name, p in chance.items()}
    found |= {f"deep {name}": float((p > bar).mean()) for name, p in chance.items()}
    return found | {"deep wins": float((truth > 0).mean()), "report rate": rate}


def new_gate(train: Outcomes, bar: float, rate: float, ipw: bool = True) -> ThinkGate:
    """A gate that knows nothing: the bar is the share that deep wins, and it starts there."""
    return ThinkGate(tau=bar, band=0.0, explore=0.1, ipw=ipw, report_rate=rate).start(train.queries, bar)


def prove(seed: int) -> Proof:
    """Twenty seeded splits of the RouteLLM table."""
    outcomes = full_table("routellm")
    weak, strong = weak_and_strong(outcomes)
    seeds = range(seed, seed + SPLITS)
    found = [one_seed(outcomes, weak, strong, s) for s in seeds]

    def apgr(name: str) -> list[float]:
        return [100 * (f[f"APGR {name}"] - 0.5) for f in found]

    def off(name: str) -> list[float]:
        return [-100 * abs(f[f"mean {name}"] - f["deep wins"]) for f in found]

    kept = [on - SHARE * full for on, full in zip(apgr("online"), apgr("offline"), strict=True)]
    effects: list[Effect] = [
        effect_over_seeds("APGR of the offline gate over a random order", apgr("offline"), "points"),
        effect_over_seeds("APGR gained online less 80 % of that gained offline", kept, "points"),
        effect_over_seeds("mean P(deep wins) from switches alone, at most 8 points off", off("switches, IPW"),
                          "points off", -OFF),
    ]  # fmt: skip
    names = ("offline", "online", "switches, IPW", "switches, plain")
    rows = [
        {"gate": n, "APGR": mean_of(found, f"APGR {n}"), "mean P(deep wins)": mean_of(found, f"mean {n}"),
         "deep wins": mean_of(found, "deep wins"), "sent deep": mean_of(found, f"deep {n}")}
        for n in names
    ]  # fmt: skip
    return Proof(
        id=26,
        name="GPT-5 router",
        claim="a gate between a fast and a deep tier learns when deep wins from judged pairs, and online from audits, "
        "preferences and switches without drifting to always deep (RouteLLM, Mixtral and GPT-4)",
        baseline="random order (APGR 0.5), shrunk kNN, the offline gate",
        effects=effects,
        falsifier=effect_over_seeds(
            "the same with each switch a plain label", off("switches, plain"), "points off", -OFF
        ),
        seeds=list(seeds),
        rows=rows,
        notes=f"Second version. Users are simulated on recorded outcomes; APGR of a shrunk kNN fitted on judged pairs: "
        f"{mean_of(found, 'APGR kNN'):.3f}; online gain as a share of the offline one: "
        f"{np.mean(apgr('online')) / np.mean(apgr('offline')):.2f}",
        figures={name: mean_of(found, name) for name in found[0]},
    )


def mean_of(found: list[dict[str, float]], name: str) -> float:
    return float(np.mean([f[name] for f in found]))
