"""Proof of system 21, SmallThinker: routing before attention hides the reading of experts, and costs little quality.

Claim. (1) A two-layer language model whose routers read the stream before attention, served token by token with half
of its experts in one LRU cache, simulated, waits less than half as long for experts as when they are known after
attention, where attention takes as long as reading one expert. (2) Its loss is at most 1 % worse than that of the
same model with routers after attention. (3) Its logits are those of the dense oracle when only neurons with a gate
above 0 are computed. (4) With 90 % of the neurons idle, one token through two experts takes at least 10 % less CPU
time than with the executor of all neurons.
Baseline: the same router after attention.
Falsifier: no early router; what is fetched during attention is what the last token used.
Data: generated text of four domains, 10,000 held-out characters a model for the loss and 2,048 for the simulator,
five seeds; a layer of 8 experts, 512 wide, width 1,024, for the clock, its gates shifted to the wanted share of idle
neurons.

Dropped: more than half of the gate neurons at 0 after training (published: a median above 0.6). In 150 to 200 steps
it stays at 0.47 to 0.50, where chance puts it, and where the sparse executor gains nothing (figures). Tried at seeds
100 to 103: stall gone 77 to 79 %, loss 0.2 to 0.6 % worse, time at 90 % idle 22 to 39 % less.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from polyroute.proofs.proof import Effect, Proof, effect_over_seeds

STEPS, CACHED = 150, 0.5


def one_seed(seed: int) -> dict[str, float]:
    """Loss before and after attention, stalls of the first, its idle neurons, and sparse against dense execution."""
    import torch

    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.inputs import Hidden
    from polyroute.nn.moe import layers
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.recipes.smallthinker import idle_neurons, serving, smallthinker_lm

    corpus, held_out = Chars(length=64), Chars(length=64, held_out=True)
    models, loss = {}, {}
    for name, options in (("before", {}), ("after", {"inp": Hidden()})):
        with seeded(seed):
            model = smallthinker_lm(corpus.vocab, 32, 2, 2, 32, 8, k=2, context=64, **options)
        train(model, batches(corpus, 8, seed=seed), steps=STEPS, seed=seed)
        loss[name] = evaluate(model, batches(held_out, 16, seed=seed + 1000)).loss
        models[name] = model
    model = models["before"]
    served = serving(model, batches(held_out, 16, seed=seed + 2000), cached=CACHED)
    text, said = next(batches(held_out, 1, seed=seed)).x, []
    for executor in ("dense", "neuron_sparse"):
        for layer in layers(model).values():
            layer.executor = executor
        with torch.no_grad():
            said.append(model(text))
    return {
        "loss before": loss["before"],
        "loss after": loss["after"],
        "stall, known after": served.after_attention.stall,
        "stall, known before": served.before_attention.stall,
        "stall, last token's": served.last_token.stall,
        "saved": 100 * served.saved,
        "saved by guess": 100 * served.saved_by_guess,
        "idle": float(np.mean(list(idle_neurons(model, batches(held_out, 16, seed=seed)).values()))),
        "difference": float((said[0] - said[1]).abs().max()),
    }


def one_token_us(seed: int, idle: float, *, dim: int = 512, width: int = 1024) -> dict[str, float]:
    """CPU microseconds of two ReGLU experts on one token, with this share of idle neurons: least of 30 runs each."""
    import torch

    from polyroute.nn.dispatch import EXECUTORS
    from polyroute.nn.routing import TokenContext
    from polyroute.nn.testbed import seeded
    from polyroute.recipes.smallthinker import smallthinker

    with seeded(seed), torch.no_grad():
        layer = smallthinker(dim, width, 8, k=2)
        x_TD = torch.randn(1, dim)
        pool: Any = layer.pool
        gate_EFD, along = pool.w1_EGD[:, :width], x_TD[0] / x_TD.norm()
        quantile = torch.special.ndtri(torch.tensor(idle, dtype=torch.float64))
        gate_EFD -= float(quantile) * (gate_EFD @ along).std() * along  # this share of gates is now below 0
        routing = layer.router(TokenContext(x_TD, (1, 1), pre_attention_TD=x_TD))
        best = {"sorted_loop": np.inf, "neuron_sparse": np.inf}
        for _ in range(30):
            for name in best:
                start = time.thread_time_ns()
                EXECUTORS[name](x_TD, routing, pool.weights())
                best[name] = min(best[name], (time.thread_time_ns() - start) / 1e3)
    return best


def prove(seed: int) -> Proof:
    """Five seeds of two small language models each, a simulated store, and one layer on the clock."""
    seeds = range(seed, seed + 5)
    found = [one_seed(s) for s in seeds]
    clock = {idle: [one_token_us(s, idle) for s in seeds] for idle in (0.5, 0.9)}
    worst = max(f["difference"] for f in found)
    faster = [100 * (1 - t["neuron_sparse"] / t["sorted_loop"]) for t in clock[0.9]]
    gap = [100 * (1 - f["loss before"] / f["loss after"]) for f in found]
    figures = {
        f"{name}, us a token, {idle:.0%} idle": float(np.median([t[name] for t in times]))
        for idle, times in clock.items()
        for name in times[0]
    }
    return Proof(
        id=21,
        name="SmallThinker",
        claim="a router before attention hides most of the waiting for experts, at a loss at most 1 % worse",
        baseline="the same router after attention: nothing can be read before it is done",
        effects=[
            effect_over_seeds("stall gone, attention as long as one read", [f["saved"] for f in found], "%", 50.0),
            effect_over_seeds("loss, after - before, share of after's", gap, "%", -1.0),
            Effect(name="dense - neuron-sparse logits, largest", value=-worst, low=-worst, high=-worst,
                   unit="nats", margin=-1e-4),
            effect_over_seeds("CPU time of one token gone, 90 % idle", faster, "%", 10.0),
        ],
        falsifier=effect_over_seeds(
            "stall gone, last token's experts fetched instead", [f["saved by guess"] for f in found], "%", 50.0
        ),
        seeds=list(seeds),
        rows=[{"seed": s, **f} for s, f in zip(seeds, found, strict=True)],
        figures=figures,
        notes="The loss is non-inferior within 1 %, nothing more is claimed of it. Stalls are in reads a token.",
    )  # fmt: skip
