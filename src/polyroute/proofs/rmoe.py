"""Proof of system 3, RMoE, third version: a state over depth adds up what routers see badly.

Data: a regression on 16 numbers, eight kinds of tokens with a centre and a linear map each (nn/corpora.Regress, centres
twice as far apart as tokens scatter). Four layers of eight linear experts of width 4, 2 a token, balance 0.1, no
attention. Every router, in training and when judged, reads the hidden state through noise: normal, fresh at each layer,
its std twice the root mean square of what is read, so that larger weights do not outgrow it (as in routers of low
precision). Experts read the state itself. 512 tokens a step, 300 steps of AdamW; 8,192 held-out tokens; six worlds.
Arms, on the same batches: linear router (rate 4e-2); two-layer router of as many parameters as RMoE, hidden width 32
(4e-2); RMoE, state 16 (3e-2); "no passing", its state starts from 0 in every layer (3e-2); "detached", no gradient
between layers (3e-2). Rates were chosen at seeds 501 to 504 from 3e-3, 1e-2, 2e-2, 4e-2 and, for the plain ones, 8e-2,
for RMoE 3e-2.
Claims, as means of log ratios over worlds: (1) the error of RMoE is below the better of the linear and the two-layer
router of each world, by more than 3 %; (2) the information between the likeliest experts of adjacent layers is more
than twice the greater of theirs; (3) handed the states of other tokens its error is more than 10 % higher; (4)
gradients for the projections of all layers but the last are longer than with the state's gradient cut between layers,
by more than 10 %; (5) its error is below that of the detached one by more than 2 %.
Falsifier: claim 1 without passing the state.

What this does not show. Without the noise the linear router is ahead (seed 501: 0.055 against 0.083): the stream itself
then tells every layer all there is. A still simpler state, the logits of earlier layers added to a linear router's,
does as well or better (seeds 510 to 514: 0.157 against 0.164; the table has one world): what pays is that something is
passed, not the cell. No gain on text is shown.
The first version, characters with a parity claim, failed at seed 0 by the spread of its losses. The second had four
worlds in place of six and nothing else different; at seed 23 claim 1 missed its margin, +0.097 [+0.023, +0.171] where
more than 0.03 is asked (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Effect, Proof, effect_over_seeds
from polyroute.recipes.rmoe import rmoe

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.corpora import Batch
    from polyroute.nn.moe import MoE
    from polyroute.nn.routing import TokenContext
    from polyroute.nn.transformer import TinyNet

KINDS, DIM, LAYERS, EXPERTS, WIDTH, STATE, HIDDEN = 8, 16, 4, 8, 4, 16, 32
NOISE, LENGTH, SEQUENCES, STEPS, WORLDS = 2.0, 4, 128, 300, 6
PLAIN, ADDED = ("linear router", "two-layer router"), "linear router, logits added up"


class LogitsAddedUp:
    """A modifier: each layer's logits are added to those of the layers before it; a state without a cell."""

    on = "logits"

    def build(self, dim: int, num_experts: int) -> LogitsAddedUp:
        return self

    def __call__(self, z_TE: Tensor, ctx: TokenContext, r_TR: Tensor) -> Tensor:
        ctx.carry_TR = z_TE if ctx.carry_TR is None else z_TE + ctx.carry_TR
        return ctx.carry_TR


def arms() -> dict[str, tuple[Callable[[int], MoE], float]]:
    """The layers of each arm, and its learning rate."""
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.scorers import MLP, Linear

    work: dict[str, Any] = {"act": "identity", "executor": "dense"}

    def plain(scorer: Any, mods: tuple[Any, ...] = ()) -> Callable[[int], MoE]:
        return lambda layer: MoE(DIM, WIDTH, EXPERTS, scorer=scorer, mods=mods, aux=(LBL(0.1),), **work)

    def recurrent(**options: Any) -> Callable[[int], MoE]:
        return rmoe(DIM, WIDTH, EXPERTS, state=STATE, balance=0.1, **options, **work)

    return {
        "linear router": (plain(Linear()), 4e-2),
        "two-layer router": (plain(MLP(hidden=HIDDEN)), 4e-2),
        "no passing": (recurrent(carry=False), 3e-2),
        "detached": (recurrent(detach=True), 3e-2),
        "RMoE": (recurrent(), 3e-2),
        ADDED: (plain(Linear(), (LogitsAddedUp(),)), 4e-2),
    }


def blur(layer: MoE, std: float) -> None:
    """Let the router of this layer, not its experts, read through fresh noise of std x the token's root mean square."""
    import torch

    read: list[Tensor] = []

    def before(router: Any, arguments: tuple[TokenContext]) -> None:
        (ctx,) = arguments
        read.append(ctx.x_TD)
        size_T1 = ctx.x_TD.detach().square().mean(-1, keepdim=True).sqrt()
        ctx.x_TD = ctx.x_TD + std * size_T1 * torch.randn_like(ctx.x_TD)

    def after(router: Any, arguments: tuple[TokenContext], routing: Any) -> None:
        arguments[0].x_TD = read.pop()

    layer.router.register_forward_pre_hook(before)
    layer.router.register_forward_hook(after)


def swapped_loss(model: TinyNet, batch: Batch, seed: int) -> float:
    """The error when each layer's router is handed the state of another token of the batch."""
    import torch

    from polyroute.nn.testbed import seeded, task_loss

    order = torch.from_numpy(np.random.default_rng(seed).permutation(batch.x.shape[0] * batch.x.shape[1]))

    def swap(part: Any, arguments: tuple[TokenContext]) -> None:
        (ctx,) = arguments
        ctx.carry_TR = None if ctx.carry_TR is None else ctx.carry_TR[order]

    hooks = [block.ffn.router.inp.register_forward_pre_hook(swap) for block in model.stack.blocks]
    with torch.no_grad(), seeded(seed):
        loss = float(task_loss(model, batch))
    for hook in hooks:
        hook.remove()
    return loss


def gradient_norms(model: TinyNet, batch: Batch, seed: int, *, detach: bool) -> np.ndarray:
    """Norm of the error's gradient for each layer's projection into the state [layers], at the same weights."""
    from polyroute.nn.testbed import seeded, task_loss

    inputs = [block.ffn.router.inp for block in model.stack.blocks]
    before = [part.detach for part in inputs]
    for part in inputs:
        part.detach = detach
    model.zero_grad()
    with seeded(seed):
        task_loss(model, batch).backward()
    for part, own in zip(inputs, before, strict=True):
        part.detach = own
    return np.array([float(part.project.weight.grad.norm()) for part in inputs])


def readouts(model: TinyNet, batch: Batch, seed: int, *, passing: bool) -> dict[str, float]:
    """Error on held-out tokens, what routers of adjacent layers and the last one tell; of a state what it does."""
    import torch

    from polyroute.nn.metrics import depth_information, mutual_information
    from polyroute.nn.moe import routings
    from polyroute.nn.testbed import seeded, task_loss

    model.eval()
    with torch.no_grad(), seeded(seed):
        error = float(task_loss(model, batch))
        made = list(routings(model).values())
    kind_T = batch.domain_B.repeat_interleave(batch.x.shape[1])
    found = {
        "error": error,
        "depth nats": float(np.mean(depth_information(made))),
        "kind nats, first": mutual_information(made[0].top1_T(), kind_T),
        "kind nats, last": mutual_information(made[-1].top1_T(), kind_T),
    }
    if passing:
        found["error, states swapped"] = swapped_loss(model, batch, seed)
        whole, cut = (gradient_norms(model, batch, seed, detach=detach) for detach in (False, True))
        found["log gradient ratio"] = float(np.log(whole[:-1] / cut[:-1]).mean())
    return found


def one_world(seed: int, *, added: bool = True) -> dict[str, dict[str, float]]:
    """Every arm on the same batches. added: also the linear router with logits added up."""
    from polyroute.nn.corpora import Regress, batches
    from polyroute.nn.testbed import seeded, train
    from polyroute.nn.transformer import TinyNet

    world, found = Regress(KINDS, DIM, spread=2.0, length=LENGTH, seed=seed), {}
    held = next(batches(world, 2048, seed=1_000_000 + seed))
    for name, (ffn, rate) in arms().items():
        if name == ADDED and not added:
            continue
        with seeded(seed):
            model = TinyNet(DIM, DIM, DIM, LAYERS, 0, ffn, project=False)
        for block in model.stack.blocks:
            blur(block.ffn, NOISE)
        train(model, batches(world, SEQUENCES, seed=seed), steps=STEPS, lr=rate, seed=seed)
        found[name] = readouts(model, held, seed, passing=name == "RMoE")
    return found


def prove(seed: int) -> Proof:
    """Six worlds; five arms in each, and one more in the first."""
    seeds = range(seed, seed + WORLDS)
    found = [one_world(s, added=s == seed) for s in seeds]

    def of(name: str, key: str) -> np.ndarray:
        return np.fromiter((each[name].get(key, math.nan) for each in found), float)

    def below(name: str) -> np.ndarray:
        gain: np.ndarray = np.log(np.min([of(plain, "error") for plain in PLAIN], axis=0) / of(name, "error"))
        return gain

    nats = np.log(of("RMoE", "depth nats") / np.max([of(plain, "depth nats") for plain in PLAIN], axis=0))
    swapped = np.log(of("RMoE", "error, states swapped") / of("RMoE", "error"))
    detached = np.log(of("detached", "error") / of("RMoE", "error"))
    effects: list[Effect] = [
        effect_over_seeds("error, better of linear and two-layer over RMoE", below("RMoE"), "log ratio", margin=0.03),
        effect_over_seeds("information between adjacent layers over the greater of theirs", nats, "log ratio",
                          margin=math.log(2)),
        effect_over_seeds("error with the states of other tokens over the error", swapped, "log ratio", margin=0.1),
        effect_over_seeds("gradient of earlier routers, whole over cut between layers",
                          of("RMoE", "log gradient ratio"), "log ratio", margin=0.1),
        effect_over_seeds("error, detached over RMoE", detached, "log ratio", margin=0.02),
    ]  # fmt: skip
    keys = ("error", "depth nats", "kind nats, first", "kind nats, last", "error, states swapped", "log gradient ratio")
    rows: list[dict[str, Any]] = [
        {"arm": name, **{key: float(of(name, key).mean()) for key in keys}} for name in found[0] if name != ADDED
    ]
    rows += [
        {"arm": f"{name}, first world", **{key: found[0][name].get(key, math.nan) for key in keys}}
        for name in (*PLAIN, "RMoE", ADDED)
    ]
    return Proof(
        id=3,
        name="RMoE",
        claim="a state over depth gathers what routers that read through noise see (regression, 4 layers)",
        baseline="the better of a linear and a two-layer router, each at its own rate; gradients cut between layers",
        effects=effects,
        falsifier=effect_over_seeds(
            "error, better of linear and two-layer over no passing", below("no passing"), "log ratio", margin=0.03
        ),
        seeds=list(seeds),
        rows=rows,
        figures={f"{key}, {row['arm']}": row[key] for row in rows for key in ("error", "depth nats")},
        notes="Routers read through noise here; without it a linear router is ahead. Logits added up over depth, a "
        "simpler state, do as well or better. No gain on text is shown.",
    )
