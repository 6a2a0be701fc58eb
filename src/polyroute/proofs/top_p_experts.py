"""Proof of system 102, top-p dynamic routing: hard tokens get more experts, and that is where the gain comes from.

Third version, fixed before any seed below 300 was run with it. The two before it compared with top-2 and claimed that
top-p settles at about two experts a token, which nothing in the mechanism promises: seeds 7 and 0 gave 2.04 and 2.03
experts over four seeds, 2.06 and 2.14 over seven, whose interval missed the margin once. The publication's
comparison is at equal cost. So now each seed's baseline is given the number of experts that top-p uses there, and the
gain must be larger (20 % instead of any). There are eight experts for the six maps: with six, the loss stayed above
0.04 in four of thirteen development worlds, probably because two maps shared an expert. The other claims are as before.

Claim. In regression on two kinds of tokens, "easy" (one linear map) and "hard" (the mean of three), a top-p layer
gives hard tokens more experts, by more than 0.5, and at equal mean experts a token its loss is lower by more than 20 %.
In a language model of 16 experts at p = 0.4 the number of experts a token falls while it trains.
Baseline: top-k whose mean is that of top-p on the same held-out tokens: every token its k best, a share of them at
random one more; same experts, load balance, steps and batches; of renormalised and raw gates the better at each seed.
Falsifier: the number of experts top-p gives each token is dealt out at random among the tokens, in training too. As
many experts as it asks for, for the wrong tokens (it learns to ask for fewer): no gain of 20 %.
Data: six maps of eight numbers drawn from the seed, eight linear experts, 400 steps; generated text. Seven seeds, four
of the language model. In development, with five seeds from each of 300, 330, 360 and 390, the gain was 62 to 81 %, its
lower end 31 to 69.

p is 0.7 and gates are renormalised, since three equal shares exceed 2/3 only together; p = 0.4 of the publication is
that of the language model. Dropped in the first version: that experts rise without the entropy loss. At 1e-4 to 1e-2 it
made no difference here (2.18 and 2.17 experts at 101 with 1e-4 and 1e-3). Also tried, at seeds 300 to 304: moving p
in training until two experts a token are used on average; losses were higher in three of five, since p then jumps
about a point where third experts are cut off.
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
P, EXPERTS, STEPS, LM_STEPS = 0.7, 8, 400, 150
GAIN, MORE = 20.0, 0.5  # %, experts


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


@dataclass(frozen=True)
class OnAverage:
    """Top-k with any mean: each token's best floor(mean) experts, a share of the tokens, at random, one more."""

    mean: float

    def build(self, dim: int, num_experts: int) -> OnAverage:
        return self

    def __call__(self, choice_TE: Tensor, ctx: TokenContext | None) -> Pairs:
        import torch

        from polyroute.nn.routing import Pairs

        low = int(self.mean)
        k_T = low + (torch.rand(len(choice_TE)) < self.mean - low).long()
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
    with seeded(seed):  # DealtOut and OnAverage draw
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


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """Top-p, the layers of its mean number of experts, and top-p dealt out, in one world on the same batches."""
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.recipes.top_p_experts import top_p_experts

    def top_p(dim: int) -> MoE:
        return top_p_experts(dim, 8, EXPERTS, p=P, renorm=True, act="identity")

    def dealt_out(dim: int) -> MoE:
        made = top_p(dim)
        made.router.select = DealtOut(P)
        return made

    found = {"top-p": one_model(seed, top_p, STEPS)}

    def fixed(gate: Any) -> Any:
        select = OnAverage(found["top-p"]["K"])
        return lambda dim: MoE(dim, 8, EXPERTS, select=select, gate=gate, aux=(LBL(1e-2),), act="identity")

    found["as many, fixed"] = one_model(seed, fixed(Renorm()), STEPS)
    found["as many, fixed, raw gates"] = one_model(seed, fixed(Raw()), STEPS)
    found["dealt out at random"] = one_model(seed, dealt_out, STEPS)
    return found


def prove(seed: int) -> Proof:
    """Four layers on sums of maps, seven seeds; a language model, four."""
    seeds = range(seed, seed + 7)
    found = [one_seed(s) for s in seeds]
    lm = np.array([lm_experts(s) for s in seeds[:4]])

    def gain(name: str) -> list[float]:
        """Share of the better fixed layer's loss that is gone, %."""
        best = [min(each["as many, fixed"]["loss"], each["as many, fixed, raw gates"]["loss"]) for each in found]
        return [100 * (1 - each[name]["loss"] / b) for each, b in zip(found, best, strict=True)]

    means = {
        name: {what: float(np.mean([each[name][what] for each in found])) for what in found[0][name]}
        for name in found[0]
    }
    rows = [{"layer": name, **row} for name, row in means.items()]
    return Proof(
        id=102,
        name="top-p dynamic routing",
        claim="tokens that need three experts get more of them, and the loss is lower than with as many for each",
        baseline="top-k of the same mean experts a token, the better of renormalised and raw gates each seed",
        effects=[
            effect_over_seeds("experts of hard - of easy tokens",
                              [each["top-p"]["K hard"] - each["top-p"]["K easy"] for each in found], "experts", MORE),
            effect_over_seeds("loss below as many experts for each token", gain("top-p"), "%", GAIN),
            effect_over_seeds("LM: experts a token, first - last steps", lm[:, 0] - lm[:, 1], "experts"),
        ],
        falsifier=effect_over_seeds(
            "loss below as many for each, numbers dealt out at random", gain("dealt out at random"), "%", GAIN
        ),
        seeds=list(seeds),
        rows=rows,
        figures={"LM experts, first steps": float(lm[:, 0].mean()), "LM experts, last steps": float(lm[:, 1].mean()),
                 "experts a token": means["top-p"]["K"]},
        notes="Third version: the baseline uses as many experts as top-p; only who gets them differs.",
    )  # fmt: skip
