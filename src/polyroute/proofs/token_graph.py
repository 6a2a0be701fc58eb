"""Proof of system 95, graph of tokens: choices averaged over similar tokens depend less on each token's own noise.

Data: four clusters of tokens in 16 dimensions, as wide as they are apart, each with a linear map of its own; tokens of
all clusters are mixed in every sequence, 8 sequences of 64 a step; one layer of 8 linear experts, 2 a token, balance
0.01, similarity at temperature 1, looking back only; 300 steps of AdamW at 3e-3; judged on 16,384 fresh tokens.
Baseline: the same layer without neighbours (kind "self", which is the plain softmax exactly), the same first weights
and batches.
Claims, over ten worlds: (1) more tokens keep their likeliest expert when the noise of all tokens is drawn anew, their
clusters unchanged; (2) the squared error is no more than 5 % above the baseline's; (3) choices say no less about the
cluster than the baseline's, by 0.05 nats.
Falsifier: claim 1 with the similarity measured with the wrong token (the one before), so that strangers are averaged.
Second version. The first claimed what the publication is about, less fluctuation late in training (the share of tokens
whose likeliest expert at the end is not the one at 90 % of it), with claims 2 and 3; it failed at seeds 7 and 0 (log
ratio +0.13 [-0.20, +0.47] and +0.11 [-0.08, +0.30]; docs/log.md). Claim 1 was in those tables (+4 and +5 points) and in
development (-2 to +5 points at seeds 100 to 108), so this version was judged at seeds 20 and 35, not seen before. It
failed there too (+1.6 points [-0.4, 3.5] and +0.7 [-1.6, 3.1]): the system stays planned.
Not claimed either: text. A character model's fluctuation rose, 0.019 to 0.025 (similarity) and 0.021 (attention), since
its tokens carry no noise to average away and the mixture's margins are narrower. Temperatures above 1 cost error (3 to
30 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.token_graph import token_graph

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.corpora import Batch, Regress
    from polyroute.nn.moe import MoE

DIM, EXPERTS, LENGTH, SEQUENCES, STEPS, CLUSTERS, TAU = 16, 8, 64, 8, 300, 4, 1.0
SEEDS = 10  # worlds


def mixed(corpus: Regress, num_sequences: int, seed: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches whose tokens are dealt over the sequences at random, with each token's cluster [T]."""
    import torch

    from polyroute.nn.corpora import batches

    rng = np.random.default_rng(seed)
    for batch in batches(corpus, num_sequences, seed=seed):
        order = torch.from_numpy(rng.permutation(batch.x.shape[0] * batch.x.shape[1]))
        x, y = (part.flatten(0, 1)[order].view_as(part) for part in (batch.x, batch.y))
        yield batch._replace(x=x, y=y), batch.domain_B.repeat_interleave(batch.x.shape[1])[order]


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


def arm(corpus: Regress, seed: int, kind: str, *, broken: bool = False) -> dict[str, float]:
    """Train one layer; read its loss, and how its choices change with training and with the tokens' noise."""
    import torch

    from polyroute.nn.metrics import fluctuation, max_vio, mutual_information, route_entropy
    from polyroute.nn.testbed import seeded, train

    with seeded(seed):
        layer = token_graph(DIM, DIM, EXPERTS, kind=kind, tau=TAU, act="identity")
    if broken:
        astray(layer)
    held, cluster_T = next(mixed(corpus, 256, 1_000_000 + seed))  # 16,384 tokens
    centre = torch.from_numpy(corpus.centre_CD)[cluster_T].view_as(held.x)
    fresh = centre + torch.randn(held.x.shape, generator=torch.Generator().manual_seed(seed)) * corpus.noise
    before: list[Tensor] = []

    def keep(step: int, history: Any) -> None:
        if step + 1 == round(0.9 * STEPS):
            before.append(chosen(layer, held.x))

    stream = (batch for batch, _ in mixed(corpus, SEQUENCES, seed))
    train(layer, stream, steps=STEPS, seed=seed, on_step=keep)
    again, now = chosen(layer, fresh), chosen(layer, held.x)
    with torch.no_grad():
        loss = float((layer(held.x) - held.y).square().mean())
    assert layer.routing is not None
    return {
        "loss": loss,
        "fluctuation": fluctuation(before[0], now),
        "survives new noise": 1.0 - fluctuation(now, again),
        "cluster nats": mutual_information(now, cluster_T),
        "entropy": route_entropy(layer.routing),
        "max_vio": max_vio(layer.routing.count_E),
    }


def one_seed(seed: int) -> dict[str, dict[str, float]]:
    """Every arm in the same world, on the same batches, from the same first weights."""
    from polyroute.nn.corpora import Regress

    corpus = Regress(CLUSTERS, DIM, seed=seed)
    return {
        "plain": arm(corpus, seed, "self"),
        "graph": arm(corpus, seed, "similarity"),
        "strangers": arm(corpus, seed, "similarity", broken=True),
    }


def prove(seed: int) -> Proof:
    """Ten worlds; three arms in each."""
    seeds = range(seed, seed + SEEDS)
    found = [one_seed(s) for s in seeds]

    def logs(key: str, over: str, under: str) -> np.ndarray:
        return np.array([np.log(each[over][key] / each[under][key]) for each in found])

    def survival(name: str) -> np.ndarray:
        return np.array(
            [100 * (each[name]["survives new noise"] - each["plain"]["survives new noise"]) for each in found]
        )

    nats = np.array([each["graph"]["cluster nats"] - each["plain"]["cluster nats"] for each in found])
    rows: list[dict[str, Any]] = [
        {"arm": name, **{key: float(np.mean([each[name][key] for each in found])) for key in found[0][name]}}
        for name in found[0]
    ]
    return Proof(
        id=95,
        name="Graph of tokens",
        claim="scores averaged over similar tokens make choices depend less on a token's noise (four mixed clusters)",
        baseline="the same layer without neighbours",
        effects=[
            effect_over_seeds("tokens that keep their expert under new noise", survival("graph"), "points"),
            effect_over_seeds(
                "squared error, plain over graph: no more than 5 % worse", logs("loss", "plain", "graph"), "log ratio",
                margin=-0.05,
            ),
            effect_over_seeds("cluster and expert: no more than 0.05 nats lost", nats, "nats more", margin=-0.05),
        ],
        falsifier=effect_over_seeds(
            "tokens that keep their expert under new noise, a graph of strangers", survival("strangers"), "points"
        ),
        seeds=list(seeds),
        rows=rows,
        figures={f"survives new noise, {row['arm']}": row["survives new noise"] for row in rows},
        notes="Fluctuation between 90 % and the end of the training is in the table; it is not shown to fall.",
    )  # fmt: skip
