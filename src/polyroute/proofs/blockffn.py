"""Proof of system 74, BlockFFN: neighbouring tokens share experts, at the sparsity and the loss of top-k.

Claim. A two-layer language model of 16 experts a layer with the ReLU router and both objectives leaves a share of
experts unused by eight neighbouring tokens (CLS_8) that is higher than top-k's by more than 10 points (the
publication has 71 against 49), while its loss is at most 2 % worse. What is claimed of the loss is that and no more.
Baseline: top-k with a load balance, k the mean number of experts of the BlockFFN of that seed, rounded down: in CLS
the harder neighbour.
Falsifier: the same router without the two objectives, its CLS_8 against the same top-k. Its sparsity is its own
(about half): without them nothing asks for more.
Data: generated text of four domains, 10,000 held-out characters a model, four seeds of 200 steps.

Short runs want a stronger objective of chunks than the published 5e-2: 0.45 over chunks of 8, and 5e-4 for locality,
without a schedule. At seeds 100 and 101, 0.3 gave 14.8 and 12.0 points, loss 0.3 % worse and 1.4 % better; 0.6 gave
19.1 and 22.8 points, loss 1.2 % worse and 0.3 % better. Locality at its published 2e-3 made routing nearly constant
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE

NUM_EXPERTS, STEPS = 16, 200


def one_model(seed: int, layer: Any) -> dict[str, float]:
    """Loss, TLS and CLS_8 of a language model with two such layers, on held-out text. layer: () -> MoE."""
    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.nn.transformer import TinyLM
    from polyroute.recipes.blockffn import sparsities

    corpus, held_out = Chars(length=64), Chars(length=64, held_out=True)
    with seeded(seed):
        model = TinyLM(corpus.vocab, 32, 2, 2, lambda _: layer(), context=64)
    train(model, batches(corpus, 8, seed=seed), steps=STEPS, seed=seed)
    readout = evaluate(model, batches(held_out, 16, seed=seed + 1000))
    found = sparsities(model, batches(held_out, 16, seed=seed + 1000))
    return {"loss": readout.loss, **found, "max_vio": max(readout.max_vio.values())}


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """BlockFFN, top-k with its number of experts rounded down, and BlockFFN without its objectives."""
    from polyroute.nn.gates import Renorm
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK
    from polyroute.recipes.blockffn import blockffn

    def block(locality: float, sparsity: float) -> MoE:
        return blockffn(32, 16, NUM_EXPERTS, locality=locality, sparsity=sparsity, chunk=8)

    found = {
        "BlockFFN": one_model(seed, lambda: block(5e-4, 0.45)),
        "no objectives": one_model(seed, lambda: block(0, 0)),
    }
    k = max(int(found["BlockFFN"]["mean_k"]), 1)
    found["top-k"] = one_model(
        seed, lambda: MoE(32, 16, NUM_EXPERTS, select=TopK(k), gate=Renorm(), act="silu", aux=(LBL(0.01),))
    )
    return found


def prove(seed: int) -> Proof:
    """Four seeds of three small language models."""
    seeds = range(seed, seed + 4)
    found = [one_seed(s) for s in seeds]

    def shared(name: str) -> list[float]:
        return [100 * (f[name]["cls"] - f["top-k"]["cls"]) for f in found]

    return Proof(
        id=74,
        name="BlockFFN",
        claim="eight neighbouring tokens leave more experts unused than with top-k of the same sparsity and loss",
        baseline="top-k with a load balance and BlockFFN's mean number of experts, rounded down",
        effects=[
            effect_over_seeds("CLS_8 above top-k", shared("BlockFFN"), "points", 10.0),
            effect_over_seeds(
                "loss, top-k - BlockFFN, share of top-k's",
                [100 * (1 - f["BlockFFN"]["loss"] / f["top-k"]["loss"]) for f in found], "%", -2.0,
            ),
        ],
        falsifier=effect_over_seeds("CLS_8 above top-k, no objectives", shared("no objectives"), "points", 10),
        seeds=list(seeds),
        rows=[
            {"layer": name, **{what: float(np.mean([f[name][what] for f in found])) for what in found[0][name]}}
            for name in found[0]
        ],
        notes="The loss is non-inferior within 2 %, nothing more is claimed of it.",
    )  # fmt: skip
