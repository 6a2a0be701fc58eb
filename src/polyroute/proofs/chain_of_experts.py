"""Proof of system 22, Chain-of-Experts: the second step goes elsewhere, and two look-ups need two steps.

Data: two look-ups, one after the other (16 maps of 16 values; a token says which two maps and which value): 16 x 32
fresh problems a step, judged on 8,192 others. One layer without attention, D = 64, 16 experts of width 16,
200 steps of AdamW at 5e-3.
Arms: a plain layer of 4 experts (the baseline: same experts, as many a token) with renormalised gates, which are better
than raw ones here; the chain of 2 + 2; the same chain with one router for both steps.
Claims, over eight seeds: (1) with a router for each step, the experts of a token's two steps overlap less than with one
router for both: Jaccard at least 0.1 lower; (2) the chain's loss is below the plain layer's; (3) the overlap is within
0.1 of what two independent draws of 2 of 16 would share (0.086).
Falsifier: claim 3 for one router for both steps.
Not claimed: composition of pairs of maps never seen in training; with half of all problems held out neither the chain
(accuracy 0.05) nor the plain layer (0.05) gets any of them. Nor a lower loss where experts are too narrow for one
look-up: with width 8 and D = 32 the chain is behind (1.78 against 1.64). Its second router costs 6 % of the layer's
arithmetic, and a good part of its gain is there with one router too. Developed at seeds 100 to 101.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.chain_of_experts import chain_of_experts

if TYPE_CHECKING:
    from torch import nn

DIM, WIDTH, EXPERTS, K, STEPS = 64, 16, 16, 4, 200
INDEPENDENT = 1 / 3 * 28 / 120 + 1 / 120  # expected Jaccard of two independent draws of 2 of 16: 0.086
NEAR = 0.1


def arms() -> dict[str, Callable[[int], Any]]:
    """Makers of each arm's layer."""
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK

    def plain(layer: int) -> nn.Module:
        return MoE(DIM, WIDTH, EXPERTS, select=TopK(K), aux=(LBL(0.01),))

    def chain(layer: int) -> nn.Module:
        return chain_of_experts(DIM, WIDTH, EXPERTS, k=K)

    def one_router(layer: int) -> nn.Module:
        return chain_of_experts(DIM, WIDTH, EXPERTS, k=K, shared_gate=True)

    return {"plain": plain, "chain": chain, "chain, one router": one_router}


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """Every arm in the same world, on the same batches."""
    from polyroute.nn.corpora import TwoHop, batches
    from polyroute.nn.metrics import jaccard
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.nn.transformer import TinyNet

    corpus = TwoHop(16, 16, problems=32, packed=True, seed=seed)
    found = {}
    for name, layer in arms().items():
        with seeded(seed):
            model = TinyNet(corpus.width, corpus.values, DIM, 1, 0, layer)
        train(model, batches(corpus, 16, seed=seed), steps=STEPS, lr=5e-3, seed=seed)
        readout = evaluate(model, batches(corpus, 256, seed=1_000_000 + seed), min_tokens=8_192)
        found[name] = {"loss": readout.loss, "accuracy": float(readout.accuracy or 0.0)}
        found[name] |= {"flops a token": readout.flops, "max_vio": max(readout.max_vio.values())}
        if name.startswith("chain"):
            found[name]["jaccard"] = jaccard(*model.stack.blocks[0].ffn.routings)
    return found


def prove(seed: int) -> Proof:
    """Eight worlds; three arms in each."""
    seeds = range(seed, seed + 8)
    found = [one_seed(s) for s in seeds]

    def of(name: str, key: str) -> np.ndarray:
        return np.array([each[name].get(key, np.nan) for each in found])

    rows = [{"arm": name, **{key: float(of(name, key).mean()) for key in found[0]["chain"]}} for name in found[0]]
    return Proof(
        id=22,
        name="Chain-of-Experts",
        claim="steps with routers of their own use other experts, and beat a layer of as many experts (two look-ups)",
        baseline="one layer of the same experts, as many a token; for the overlap, a chain with one router",
        effects=[
            effect_over_seeds(
                "Jaccard of the two steps, one router for both over one for each",
                of("chain, one router", "jaccard") - of("chain", "jaccard"), "of 1 lower", margin=0.1,
            ),
            effect_over_seeds(
                "loss of the plain layer over the chain's", of("plain", "loss") - of("chain", "loss"), "nats"
            ),
            effect_over_seeds(
                "Jaccard below that of independent draws plus 0.1",
                INDEPENDENT + NEAR - of("chain", "jaccard"), "of 1",
            ),
        ],
        falsifier=effect_over_seeds(
            "Jaccard below that of independent draws plus 0.1, one router for both steps",
            INDEPENDENT + NEAR - of("chain, one router", "jaccard"), "of 1",
        ),
        seeds=list(seeds),
        rows=rows,
        figures={f"loss, {name}": float(of(name, "loss").mean()) for name in found[0]},
        notes="Both learn the problems by heart; neither answers pairs of maps it has never seen.",
    )  # fmt: skip
