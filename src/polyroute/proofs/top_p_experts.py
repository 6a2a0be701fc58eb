"""Proof of system 102, top-p dynamic routing: hard tokens get more experts, and that is where the gain comes from.

Second version: seven seeds instead of four, nothing else. The first could not tell the third effect, which is that
top-p uses about as many experts as top-2: seed 7 gave -0.04 [-0.31, +0.24] where above -0.3 was wanted. Some seeds
end in a local optimum in which two maps share an expert, so that losses and numbers of experts scatter. This version
held at seed 7 and failed at seed 0 by the same effect, -0.14 [-0.32, +0.05]: the system stays planned.

Claim. In regression on two kinds of tokens, "easy" (one linear map) and "hard" (the mean of three), a top-p layer
gives hard tokens more experts, by more than 0.5; with about as many experts a token as top-2 (at most 0.3 more) its
loss is lower. In a language model of 16 experts at p = 0.4 the number of experts a token falls while it trains.
Baseline: top-2 with the same experts, load balance and steps; of renormalised and raw gates the better at each seed.
Falsifier: the number of experts top-p gives each token is dealt out at random among the tokens, in training too. As
many experts as it asks for, for the wrong tokens (it learns to ask for fewer, 1.7): no gain over top-2.
Data: six maps of eight numbers drawn from the seed, six linear experts; generated text. Seven seeds, four of the
language model.

p is 0.7 and gates are renormalised, since three equal shares exceed 2/3 only together; p = 0.4 of the publication is
that of the language model. Tried at seeds 100 to 103: 2.00, 2.18, 2.16 and 2.00 experts a token, loss 0.002, 0.025,
0.003 and 0.003, against 0.050 and 0.045 of top-2 at 100. Dropped: that experts rise without the entropy loss. At 1e-4
to 1e-2 it made no difference here (2.18 and 2.17 experts at 101 with 1e-4 and 1e-3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyroute.nn.corpora import Batch
    from polyroute.nn.routing import Pairs, TokenContext

EASY, HARD = 0, 1
P, STEPS, LM_STEPS = 0.7, 500, 150


class Sums:
    """Tokens of two kinds, one kind a sequence: y = A_i u, or the mean of A_i u over three maps.

    maps: M linear maps of `dim` numbers. The mean, since the weights of a mixture sum to 1. x = [u, which maps], both
    of a fixed length, so that the norm before the layer scales all tokens alike. Domain 1 is hard.
    """

    num_domains = 2

    def __init__(self, maps: int = 6, dim: int = 8, *, length: int = 32, seed: int):
        self.maps, self.dim, self.length, self.width = maps, dim, length, dim + maps
        rng = np.random.default_rng(seed)
        self.map_MOD = (rng.normal(size=(maps, dim, dim)) / dim**0.5).astype(np.float32)

    def batch(self, rng: np.random.Generator, num_sequences: int, *, domain: int | None = None) -> Batch:
        import torch

        from polyroute.nn.corpora import Batch, draw_domains

        kind_B = draw_domains(rng, num_sequences, 2, None, domain)
        shape = (num_sequences, self.length)
        rank_BLM = rng.random((*shape, self.maps)).argsort(-1)
        used_BLM = (rank_BLM < np.where(kind_B == HARD, 3, 1)[:, None, None]).astype(np.float32)
        u_BLD = rng.standard_normal((*shape, self.dim), dtype=np.float32)
        u_BLD *= self.dim**0.5 / np.linalg.norm(u_BLD, axis=-1, keepdims=True)
        count_BL1 = used_BLM.sum(-1, keepdims=True)
        each_BLMO = np.einsum("bld,mod->blmo", u_BLD, self.map_MOD)
        y_BLO = (used_BLM[..., None] * each_BLMO).sum(2) / count_BL1
        x_BLD = np.concatenate([u_BLD, 3 * used_BLM / count_BL1**0.5], axis=-1)
        return Batch(torch.from_numpy(x_BLD), torch.from_numpy(y_BLO), torch.from_numpy(kind_B))


@dataclass(frozen=True)
class DealtOut:
    """Top-p broken on purpose: its numbers of experts, dealt out to the tokens at random; each takes its best."""

    p: float

    def build(self, dim: int, num_experts: int) -> DealtOut:
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext | None) -> Pairs:
        import torch

        from polyroute.nn.routing import Pairs
        from polyroute.nn.selection import TopP

        num_tokens = len(choice_TE)
        k_T = torch.bincount(TopP(self.p)(choice_TE, ctx).tok_N, minlength=num_tokens)  # type: ignore[arg-type]
        k_T = k_T[torch.randperm(num_tokens)]
        rank_TE = choice_TE.detach().argsort(-1, descending=True).argsort(-1)
        return Pairs.of_mask(rank_TE < k_T[:, None])


def one_model(seed: int, layer: Any, steps: int) -> dict[str, float]:
    """Loss and experts a token of a one-layer network, over all tokens and by kind. layer: dim -> MoE."""
    from polyroute.nn.corpora import batches
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.nn.transformer import TinyNet

    world = Sums(seed=seed)

    def part(_: int) -> nn.Module:
        made: nn.Module = layer(world.width)
        return made

    with seeded(seed):
        model = TinyNet(world.width, world.dim, world.width, 1, 0, part, project=False)
    train(model, batches(world, 16, seed=seed), steps=steps, seed=seed, lr=1e-2)
    found = {}
    with seeded(seed):  # DealtOut draws
        for name, kind in (("easy", EASY), ("hard", HARD)):
            readout = evaluate(model, batches(world, 16, seed=seed + 1000, domain=kind))
            (found[f"K {name}"],), found[f"loss {name}"] = readout.mean_k.values(), readout.loss
    for what in ("K", "loss"):
        found[what] = (found[f"{what} easy"] + found[f"{what} hard"]) / 2
    return found


def lm_experts(seed: int) -> tuple[float, float]:
    """Experts a token of a language model's mixture, p = 0.4 of 16: over the first 10 steps, over the last 10."""
    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.testbed import seeded, train
    from polyroute.recipes.top_p_experts import top_p_lm

    corpus = Chars(length=64)
    with seeded(seed):
        model = top_p_lm(corpus.vocab, 32, 2, 2, 16, context=64)
    history = train(model, batches(corpus, 8, seed=seed), steps=LM_STEPS, seed=seed)
    (records,) = history.load.values()
    tokens = history.load_every * 8 * 64
    return sum(records[0]) / tokens, sum(records[-1]) / tokens


def prove(seed: int) -> Proof:
    """Four layers on sums of maps and a language model, seven and four seeds."""
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK
    from polyroute.recipes.top_p_experts import top_p_experts

    def top_p(dim: int, **options: Any) -> MoE:
        return top_p_experts(dim, 8, 6, p=P, renorm=True, act="identity", **options)

    def fixed(gate: Any) -> Any:
        return lambda dim: MoE(dim, 8, 6, select=TopK(2), gate=gate, aux=(LBL(1e-2),), act="identity")

    def dealt_out(dim: int) -> MoE:
        made = top_p(dim)
        made.router.select = DealtOut(P)
        return made

    seeds = range(seed, seed + 7)
    layers = {
        "top-p": top_p,
        "top-2": fixed(Renorm()),
        "top-2, raw gates": fixed(Raw()),
        "dealt out at random": dealt_out,
    }
    found = {name: [one_model(s, layer, STEPS) for s in seeds] for name, layer in layers.items()}
    lm = np.array([lm_experts(s) for s in seeds[:4]])

    def gain(name: str) -> list[float]:
        """Share of the better fixed layer's loss that is gone, %."""
        fixed_loss = [min(a["loss"], b["loss"]) for a, b in zip(found["top-2"], found["top-2, raw gates"], strict=True)]
        return [100 * (1 - a["loss"] / b) for a, b in zip(found[name], fixed_loss, strict=True)]

    rows = [
        {"layer": name, **{what: float(np.mean([f[what] for f in arm])) for what in arm[0]}}
        for name, arm in found.items()
    ]
    return Proof(
        id=102,
        name="top-p dynamic routing",
        claim="tokens that need three experts get more of them, and the loss is lower than with two for each",
        baseline="top-2, the better of renormalised and raw gates each seed; same experts, load balance and steps",
        effects=[
            effect_over_seeds("experts of hard - of easy tokens", [f["K hard"] - f["K easy"] for f in found["top-p"]],
                              "experts", 0.5),
            effect_over_seeds("loss below top-2", gain("top-p"), "%"),
            effect_over_seeds("2 - experts a token", [2 - f["K"] for f in found["top-p"]], "experts", -0.3),
            effect_over_seeds("LM: experts a token, first - last steps", lm[:, 0] - lm[:, 1], "experts"),
        ],
        falsifier=effect_over_seeds("loss below top-2, numbers dealt out at random", gain("dealt out at random"), "%"),
        seeds=list(seeds),
        rows=rows,
        figures={"LM experts, first steps": float(lm[:, 0].mean()), "LM experts, last steps": float(lm[:, 1].mean())},
        notes="Second version: seven seeds instead of four.",
    )  # fmt: skip
