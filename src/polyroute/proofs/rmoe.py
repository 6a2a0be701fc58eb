"""Proof of system 3, RMoE: a state that runs over depth ties the routers of all layers together.

Data: text of four domains, characters (nn/chars.py), 8 x 32 a step; a causal model of 4 layers, D = 32, 8 experts of
width 32, 2 a token, state 32, balance 0.01; 150 steps of AdamW at 3e-3; judged on 8,192 held-out characters.
Arms, on the same batches: a linear router, a two-layer router of about the same size, the recurrent router whose state
starts from 0 in every layer ("no passing"), and RMoE.
Claims, over four seeds: (1) routers have learnt to rely on what came before them: handed the state of another token,
the loss of RMoE rises by more than 0.01 nats; (2) later layers teach earlier ones: at the trained weights the gradient
for the projections of all layers but the last is longer than with the state's gradient cut between layers (baseline),
by more than 2 % on the geometric mean; (3) its loss is no more than 0.02 nats above the better of the linear and the
two-layer router.
Falsifier: claim 1 without passing the state.
Dropped in development at seeds 100 to 102: that the information between the choices of adjacent layers is several times
that of a linear router. It was 0.44 to 0.58 nats against 0.33, but 0.34 to 0.62 without passing the state and 0.40 to
0.52 for a two-layer router: a narrower or bent score does it, not the state. The table has it. That passing lowers the
loss is not claimed either (0.017 nats to none).

This proof failed at seed 0 by claim 3: in text of characters parity with the better plain router is not shown, and the
system stays planned. A world of routers that read through noise was begun and is not finished (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.recipes.rmoe import rmoe

if TYPE_CHECKING:
    from polyroute.nn.corpora import Batch
    from polyroute.nn.transformer import TinyLM

DIM, LAYERS, EXPERTS, STATE, LENGTH, SEQUENCES, STEPS = 32, 4, 8, 32, 32, 8, 150


def scrambled_loss(model: TinyLM, batch: Batch, rng: np.random.Generator) -> float:
    """The loss, in nats, when each layer's router is handed the state of another token of the batch."""
    import torch

    from polyroute.nn.testbed import task_loss

    order = torch.from_numpy(rng.permutation(batch.x.numel()))

    def swap(part: Any, arguments: tuple[Any, ...]) -> None:
        (ctx,) = arguments
        ctx.carry_TR = None if ctx.carry_TR is None else ctx.carry_TR[order]

    hooks = [block.ffn.router.inp.register_forward_pre_hook(swap) for block in model.stack.blocks]
    with torch.no_grad():
        loss = float(task_loss(model, batch))
    for hook in hooks:
        hook.remove()
    return loss


def gradient_norms(model: TinyLM, batches: Sequence[Batch], *, detach: bool) -> np.ndarray:
    """Norm of the loss's gradient for each layer's projection into the state [layers], at the same weights."""
    from polyroute.nn.testbed import task_loss

    inputs = [block.ffn.router.inp for block in model.stack.blocks]
    before = [part.detach for part in inputs]
    for part in inputs:
        part.detach = detach
    model.zero_grad()
    for batch in batches:
        task_loss(model, batch).backward()
    for part, own in zip(inputs, before, strict=True):
        part.detach = own
    return np.array([float(part.project.weight.grad.norm()) for part in inputs])


def readouts(model: TinyLM, seed: int, *, recurrent: bool) -> dict[str, float]:
    """Loss on held-out text, information between adjacent layers; of a state also what it carries."""
    import torch

    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.metrics import mutual_information
    from polyroute.nn.moe import routings
    from polyroute.nn.testbed import task_loss

    stream = batches(Chars(LENGTH, held_out=True), 64, seed=1_000_000 + seed)
    held = [next(stream) for _ in range(4)]  # 8,192 tokens
    losses, tops = [], []
    model.eval()
    with torch.no_grad():
        for batch in held:
            losses.append(float(task_loss(model, batch)))
            tops.append(torch.stack([routing.top1_T() for routing in routings(model).values()]))
    depth = [mutual_information(a, b) for a, b in pairwise(torch.cat(tops, dim=1))]
    found = {"loss": float(np.mean(losses)), "depth nats": float(np.mean(depth))}
    if recurrent:
        rng = np.random.default_rng(seed)
        found["loss, states swapped"] = float(np.mean([scrambled_loss(model, batch, rng) for batch in held]))
        whole, cut = (gradient_norms(model, held[:2], detach=detach) for detach in (False, True))
        found["log gradient ratio"] = float(np.log(whole[:-1] / cut[:-1]).mean())
    return found


def arms() -> dict[str, Callable[[], Any]]:
    """Makers of each arm's layers."""
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.scorers import MLP, Linear

    def plain(scorer: Any) -> Callable[[int], MoE]:
        return lambda layer: MoE(DIM, DIM, EXPERTS, scorer=scorer, aux=(LBL(0.01),))

    return {
        "linear router": lambda: plain(Linear()),
        "MLP router": lambda: plain(MLP(hidden=STATE)),
        "no passing": lambda: rmoe(DIM, DIM, EXPERTS, state=STATE, carry=False),
        "RMoE": lambda: rmoe(DIM, DIM, EXPERTS, state=STATE),
    }


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """Every arm on the same batches."""
    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.testbed import seeded, train
    from polyroute.nn.transformer import TinyLM

    corpus, found = Chars(LENGTH, seed=seed), {}
    for name, layers in arms().items():
        with seeded(seed):
            model = TinyLM(corpus.vocab, DIM, LAYERS, 4, layers(), context=LENGTH)
        train(model, batches(corpus, SEQUENCES, seed=seed), steps=STEPS, seed=seed)
        found[name] = readouts(model, seed, recurrent=name not in ("linear router", "MLP router"))
    return found


def prove(seed: int) -> Proof:
    """Four seeds; four arms in each."""
    seeds = range(seed, seed + 4)
    found = [one_seed(s) for s in seeds]

    def of(name: str, key: str) -> np.ndarray:
        return np.fromiter((each[name].get(key, math.nan) for each in found), float)

    def swapped(name: str) -> np.ndarray:
        difference: np.ndarray = of(name, "loss, states swapped") - of(name, "loss")
        return difference

    simple = np.minimum(of("linear router", "loss"), of("MLP router", "loss"))
    effects: list[Effect] = [
        effect_over_seeds("loss with the states of other tokens over the loss", swapped("RMoE"), "nats", margin=0.01),
        effect_over_seeds(
            "gradient of earlier routers, whole over cut between layers", of("RMoE", "log gradient ratio"), "log ratio",
            margin=0.02,
        ),
        effect_over_seeds(
            "loss below the better of the linear and the two-layer router", simple - of("RMoE", "loss"), "nats",
            margin=-0.02,
        ),
    ]  # fmt: skip
    keys = ("loss", "depth nats", "loss, states swapped", "log gradient ratio")
    rows: list[dict[str, Any]] = [
        {"arm": name, **{key: float(of(name, key).mean()) for key in keys}} for name in found[0]
    ]
    return Proof(
        id=3,
        name="RMoE",
        claim="routers rely on the state that earlier routers wrote, and learn through it (characters, 4 layers)",
        baseline="no state or gradient from other layers; for the loss, the better of a linear and a two-layer router",
        effects=effects,
        falsifier=effect_over_seeds(
            "loss with the states of other tokens over the loss, no passing", swapped("no passing"), "nats", margin=0.01
        ),
        seeds=list(seeds),
        rows=rows,
        figures={f"{key}, {row['arm']}": row[key] for row in rows for key in ("loss", "depth nats")},
        notes="The loss is a parity claim. Information between layers is in the table and not claimed.",
    )
