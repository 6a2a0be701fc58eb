"""Proof of system 95, graph of tokens: scores averaged over similar tokens, where a token alone is too noisy to route.

Data: four topics, a centre each in 16 dimensions; a token lies at its topic's centre or at the opposite one, so there
are eight kinds of tokens, each with a linear map of its own (nn/corpora.Regress); noise of std 1.5 on every number of a
token. A sequence of 64 tokens has one topic and both sides, at random. 8 sequences a step; one layer of 8 linear
experts, 2 a token, balance 0.1; similarity with a learned matrix at temperature 4, looking back only; 400 steps of
AdamW at 1e-2; judged on 8,192 fresh tokens.
Baselines, same batches and experts: the plain softmax router, and a router that reads the mean of the sequence so far
beside the token (so that averaging as such is not what is shown).
Claims, over seven worlds: (1) the squared error is below that of the better baseline, world by world, by a log ratio
above 0.1; (2) at least 5 points more tokens than in the plain layer keep their likeliest expert when all noise is drawn
anew, kinds unchanged.
Falsifier: claim 1, in three of the worlds, with the similarity measured with the wrong token (the one before), so that
strangers are averaged.

Third version. The first claimed less fluctuation late in training, the second what is (2) here; both had clusters 5.7
standard deviations apart, all in every sequence: a token said its cluster by itself and its neighbours nothing more,
and nothing came of it (docs/log.md). Here neighbours know more than the token: its topic. Where a sequence mixes two of
eight random centres, the mean of the sequence says that as well: in development there the mean-reading router (error
0.185 and 0.121) was level with the graph (0.208 and 0.128), both far below the plain one (0.348 and 0.227). Opposite
sides make the mean say nothing, and that is the world judged here. Before the final seeds the balance went from 0.01 to
0.1 (two kinds that share an expert are then rare, in every arm) and the worlds from five to seven. Dropped in
development, and so not shown: less fluctuation, the publication's own claim (plain over graph, log ratio, +1.64 [0.55,
2.72] in five worlds from seed 300, +0.34 [-1.28, 1.95] in seven from 330; it is in the table). A uniform average of all
scores so far errs by 0.49 to 0.51, twice the plain router.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.token_graph import token_graph

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.corpora import Batch, Regress
    from polyroute.nn.moe import MoE

DIM, KINDS, LENGTH, SEQUENCES, STEPS, NOISE, TAU, RATE, BALANCE = 16, 8, 64, 8, 400, 1.5, 4.0, 1e-2, 0.1
SEEDS, BROKEN = 7, 3  # worlds; of them with the falsifier
BETTER, POINTS = 0.1, 5.0  # log ratio; points
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "self"},
    "mean beside": {"kind": "self"},
    "graph": {"kind": "similarity", "learned": True},
    "strangers": {"kind": "similarity", "learned": True},
}
BASELINES = ("plain", "mean beside")


@dataclass(frozen=True)
class BesideMean:
    """A router's input: the token, and the mean of its sequence up to it (the baseline)."""

    width: int = 2 * DIM

    def build(self, dim: int, num_experts: int) -> BesideMean:
        return self

    def __call__(self, ctx: Any) -> Tensor:
        import torch

        from polyroute.nn.inputs import Pooled

        return torch.cat([ctx.x_TD, Pooled(causal=True)(ctx)], -1)


def world(seed: int) -> Regress:
    """Eight kinds, a map each; kind i + 4 lies opposite kind i."""
    from polyroute.nn.corpora import Regress

    corpus = Regress(KINDS, DIM, noise=NOISE, length=LENGTH, seed=seed)
    corpus.centre_CD[KINDS // 2 :] = -corpus.centre_CD[: KINDS // 2]
    return corpus


def draw(corpus: Regress, rng: np.random.Generator, kind_BL: np.ndarray) -> Batch:
    """Tokens of these kinds, with what their maps make of them."""
    import torch

    from polyroute.nn.corpora import Batch

    noise_BLD = rng.standard_normal((*kind_BL.shape, DIM), dtype=np.float32)
    x_BLD = corpus.centre_CD[kind_BL] + np.float32(NOISE) * noise_BLD
    y_BLO = np.einsum("blod,bld->blo", corpus.map_COD[kind_BL], x_BLD)
    return Batch(torch.from_numpy(x_BLD), torch.from_numpy(y_BLO), torch.from_numpy(kind_BL[:, 0]))


def kinds(rng: np.random.Generator, num_sequences: int) -> np.ndarray:
    """One topic a sequence, each token on either side [B, L]."""
    topic_B1 = rng.integers(KINDS // 2, size=(num_sequences, 1))
    return topic_B1 + KINDS // 2 * rng.integers(2, size=(num_sequences, LENGTH))


def stream(corpus: Regress, seed: int) -> Iterator[Batch]:
    """Batches without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield draw(corpus, rng, kinds(rng, SEQUENCES))


def astray(layer: MoE) -> None:
    """Break a layer's graph: similarity is measured with the token before each neighbour, so strangers are mixed."""
    norm = layer.router.norm
    states = norm._states

    def shifted(ctx: Any) -> tuple[Tensor, Tensor]:
        query_BLD, key_BLD = states(ctx)
        return query_BLD, key_BLD.roll(1, dims=1)

    norm._states = shifted


def chosen(layer: MoE, x_BLD: Tensor) -> Tensor:
    """The likeliest expert of each token [T]."""
    import torch

    layer.eval()
    with torch.no_grad():
        layer(x_BLD)
    layer.train()
    assert layer.routing is not None
    return layer.routing.top1_T()


def arm(corpus: Regress, seed: int, name: str) -> dict[str, float]:
    """Train one layer; read its error, and how its choices change with training and with the tokens' noise."""
    import torch

    from polyroute.nn.metrics import fluctuation, max_vio, mutual_information
    from polyroute.nn.testbed import seeded, train

    more: dict[str, Any] = {"inp": BesideMean()} if name == "mean beside" else {}
    with seeded(seed):
        layer = token_graph(DIM, DIM, KINDS, tau=TAU, balance=BALANCE, act="identity", **ARMS[name], **more)
    if name == "strangers":
        astray(layer)
    rng = np.random.default_rng([seed, 1])
    kind_BL = kinds(rng, 128)  # 8,192 tokens
    held, fresh = draw(corpus, rng, kind_BL), draw(corpus, rng, kind_BL)
    before: list[Tensor] = []

    def keep(step: int, history: Any) -> None:
        if step + 1 == round(0.9 * STEPS):
            before.append(chosen(layer, held.x))

    train(layer, stream(corpus, seed), steps=STEPS, lr=RATE, seed=seed, on_step=keep)
    again, now = chosen(layer, fresh.x), chosen(layer, held.x)
    with torch.no_grad():
        error = float((layer(held.x) - held.y).square().mean())
    assert layer.routing is not None
    return {
        "error": error,
        "fluctuation": fluctuation(before[0], now),
        "survives new noise": 1.0 - fluctuation(now, again),
        "kind nats": mutual_information(now, torch.from_numpy(kind_BL).flatten()),
        "max_vio": max_vio(layer.routing.count_E),
    }


def prove(seed: int) -> Proof:
    """Seven worlds with three arms each, and the falsifier in three of them."""
    seeds = range(seed, seed + SEEDS)
    found = [{name: arm(world(s), s, name) for name in ARMS if name != "strangers" or s < seed + BROKEN} for s in seeds]

    def lower(name: str) -> np.ndarray:
        best = [min(each[b]["error"] for b in BASELINES) for each in found]
        return np.array([np.log(b / each[name]["error"]) for b, each in zip(best, found, strict=True) if name in each])

    survives = [100 * (f["graph"]["survives new noise"] - f["plain"]["survives new noise"]) for f in found]
    rows: list[dict[str, Any]] = [
        {"arm": name, **{key: float(np.mean([f[name][key] for f in found if name in f])) for key in found[0][name]}}
        for name in ARMS
    ]
    return Proof(
        id=95,
        name="Graph of tokens",
        claim="scores averaged over similar tokens lower the error and steady choices where tokens are noisy",
        baseline="the better of plain softmax and a router that reads the sequence's mean beside the token",
        effects=[
            effect_over_seeds("squared error, better baseline over graph", lower("graph"), "log ratio", BETTER),
            effect_over_seeds("tokens that keep their expert under new noise, more", survives, "points", POINTS),
        ],
        falsifier=effect_over_seeds(
            "squared error, better baseline over a graph of strangers", lower("strangers"), "log ratio", BETTER
        ),
        seeds=list(seeds),
        rows=rows,
        figures={f"error, {row['arm']}": row["error"] for row in rows},
        notes="Sides of a topic are opposite, so that a sequence's mean says nothing; where it does, a router that "
        "reads it beside the token was level with the graph in development. Less fluctuation is not shown.",
    )
