"""Proof of system 107, T2MIR: contrast makes one side of a layer choose its experts by task.

Second version, fixed before any seed below 300 was run with it. The first, four seeds of 300 steps on ten arms, gave
+0.24 [0.17, 0.30] in information at a loss 4.9 % higher [-3.9, 13.6] at seed 7, and +0.32 [-0.01, 0.64] at 1.7 %
[-1.5, 4.9] at seed 0: it failed once by each interval. A contrast weighed like the task takes some of the training
from it, and ten arms are hardly learned in 300 steps in some worlds (accuracy 0.56 at seed 300). Changed: coefficient
0.3 instead of 1, six arms and 24 pulls instead of ten and 32, 200 steps at 5e-3 instead of 300 at 3e-3, nine seeds
instead of four. Claims, margins, baseline and falsifier are the same. Development, one seed each of 300, 330, 360 and
390: +0.18, +0.28, +0.38 and +0.19 at a loss between 3.8 % lower and 0.6 % higher; a coefficient of 1: +0.25, +0.34,
+0.40 and +0.14 at 3.3 % higher to 2.2 % lower. Of seven seeds: +0.28 [0.20, 0.35] from 300, +0.22 [0.13, 0.32] from
360; the last is near 0.1, hence nine.

Claim: in-context bandits of eight families; a two-layer net whose last layer is half token experts, half task experts,
16 sequences a step, two of each task. On new tasks of the same families the normalised information between a
sequence's family and its dominant task expert (largest mean score) is higher with InfoNCE than without, by more than
0.1, and the loss in context is at most 5 % higher. Baseline: the same layer without the contrast, whose task side
already tells families apart somewhat. Falsifier: InfoNCE with partners that are not of one task.
The published coefficient 0.01, keys at 0.005 a step and a matrix of unit size hardly act within 300 steps (0.46 against
0.47 without, seed 100), so keys at 0.05 and a matrix of 10 x identity are used (inferred). Not claimed: that in-context
error gets lower. Dense and token-only layers stand in the rows of the first seed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.tasks import BanditTasks

FAMILIES, ARMS, PULLS = 8, 6, 24
STEPS, LR, SEEDS, SEQUENCES, HEADS, DIM, WIDTH = 200, 5e-3, 9, 16, 2, 32, 32
CONTRAST: dict[str, Any] = {"contrast": 0.3, "scale": 10.0, "ema": 0.05}


def family_information(model: nn.Module, tasks: BanditTasks, layer: str, seed: int) -> float:
    """Normalised information of family and dominant expert over 384 new sequences, 0 to 1."""
    import torch

    from polyroute.nn.losses import mean_shares
    from polyroute.nn.metrics import nmi
    from polyroute.nn.moe import layers

    rng, families, experts = np.random.default_rng(seed), [], []
    model.eval()
    for _ in range(6):
        batch = tasks.batch(rng, 64)
        with torch.no_grad():
            model(batch.x)
        routing = layers(model)[layer].routing
        assert routing is not None
        families.append(batch.domain_B)
        experts.append(mean_shares(routing, 64).argmax(1))
    return nmi(torch.cat(families), torch.cat(experts))


def one_arm(seed: int, kind: str, *, paired: bool = True, **options: Any) -> dict[str, float]:
    """Loss and accuracy on new tasks, and what the task side tells of families. kind: "dense", "token" or "both"."""
    from polyroute.nn.corpora import batches
    from polyroute.nn.experts import FeedForward
    from polyroute.nn.moe import layers
    from polyroute.nn.tasks import BanditTasks, PairedTaskSampler
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.recipes.task_experts import TASK_SIDE, task_net

    tasks = BanditTasks(FAMILIES, ARMS, pulls=PULLS, seed=seed)
    with seeded(seed):
        model = task_net(tasks.width, tasks.out, DIM, 2, HEADS, WIDTH, context=tasks.length, **options)
        last: Any = model.stack.blocks[1]
        if kind == "dense":
            last.ffn = FeedForward(DIM, 2 * WIDTH)
        elif kind == "token":
            last.ffn = token_only()
    source = PairedTaskSampler(tasks) if paired else tasks
    train(model, batches(source, SEQUENCES, seed=seed), steps=STEPS, seed=seed, lr=LR)
    readout = evaluate(model, batches(tasks, 64, seed=seed + 1000))
    found = {"loss": readout.loss, "accuracy": readout.accuracy or 0.0}
    name = f"stack.blocks.1.ffn.parts.{TASK_SIDE}"
    if name in layers(model):
        found["information"] = family_information(model, tasks, name, seed + 2000)
    return found


def token_only() -> nn.Module:
    """The token side alone, at the full width."""
    from polyroute.nn.losses import Importance, NoisyLoad
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import Noise
    from polyroute.nn.scorers import MLP

    aux = (Importance(0.1), NoisyLoad(0.1))
    return MoE(DIM, WIDTH, 6, scorer=MLP(), mods=(Noise(learned=True),), aux=aux)


def prove(seed: int) -> Proof:
    """Three layers, nine seeds each; dense and token-only layers for the first."""
    seeds = range(seed, seed + SEEDS)
    full = [one_arm(s, "both", **CONTRAST) for s in seeds]
    without = [one_arm(s, "both", contrast=0.0) for s in seeds]
    broken = [one_arm(s, "both", paired=False, **CONTRAST) for s in seeds]
    arms = {"contrast": full, "without": without, "wrong partners": broken}
    rows = [
        {"layer": name, **{what: float(np.mean([f[what] for f in arm])) for what in arm[0]}}
        for name, arm in arms.items()
    ]
    rows += [{"layer": f"{kind}, seed {seed}", **one_arm(seed, kind)} for kind in ("dense", "token")]

    def gain(arm: list[dict[str, float]]) -> list[float]:
        return [a["information"] - b["information"] for a, b in zip(arm, without, strict=True)]

    worse = [100 * (1 - a["loss"] / b["loss"]) for a, b in zip(full, without, strict=True)]
    return Proof(
        id=107,
        name="T2MIR",
        claim="with contrast the dominant task expert tells more about a new task's family (in-context bandits)",
        baseline="the same two-sided layer without the contrast",
        effects=[
            effect_over_seeds("information of family and task expert", gain(full), "of 1", 0.1),
            effect_over_seeds("loss in context: not worse", worse, "%", -5.0),
        ],
        falsifier=effect_over_seeds("information, partners not of one task", gain(broken), "of 1", 0.1),
        seeds=list(seeds),
        rows=rows,
        notes="The loss in context is no better than without; only that it is not much worse is claimed.",
    )
