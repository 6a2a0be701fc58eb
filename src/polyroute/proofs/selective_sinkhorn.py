"""Proof of system 78, Selective Sinkhorn routing: a few steps of balanced transport in place of a balance loss.

Second version, with a narrower claim. The first (four kinds of token, two experts each, 500 steps) asked for a more
balanced softmax router in a task that hardly loses balance, and had none. Here routing collapses without help.

Data: eight kinds of token with Zipf's frequencies (1, 1/2, ... 1/8), each with a linear map of its own from 16 numbers
to 16; all inputs share an offset, as hidden states do. 16 runs of 8 tokens a step, of one kind each; 8 linear experts,
one a token, weighed by its score (Switch); a router that starts nearly flat; 1,500 steps of AdamW, unclipped; judged
on fresh tokens by the softmax router alone. Transport on 1 % of steps (the published range ends there), linear cost, xi
0.1, no gradient through the plan, no noise. Worlds are trained side by side, 32 at a time (nn/side_by_side.py); a world
has the same data and first weights in every arm, and a coin of its own.
Arms: nothing; transport; dealt (the same plans, their rows dealt over the tokens at random: as balanced, about
nothing); balance (Switch's loss); rows (on the same steps softmax of logits / xi, the plan without its columns; in half
the worlds). Rates of router and experts were tuned apart, 3e-3 to 8e-2 and 1e-3 to 2e-2, the loss's coefficient from
0.001 to 0.03: 4e-2 and 4e-3, with balance 8e-2, 4e-3 and 0.01 (8e-2 was tried with balance only).
Claims: (1) the error is lower than with nothing; (2) lower than with dealt plans; (3) at most a fifth higher than with
the balance loss (log ratio above -0.2), with no coefficient to tune; (4) on skewed logits (1,024 tokens, 16 experts,
two a token) MaxVio of the plan's choice is lower than that of softmax's by 1. Falsifier: claim 1 with rows alone.

Developed and not passed, so not run at final seeds (docs/log.md): at seed 500 claim 3 came to -0.02 [-0.23, 0.20], with
lower errors under the balance loss on average; 1, 2 and 4 held. With one rate for all every claim would have stood, but
a faster router and slower experts halve the error under the balance loss, lower it by a quarter with nothing, and
hardly change it with transport. Nor is the trained softmax router as balanced as with the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.moe_baselines import softmax_top_k
from polyroute.recipes.selective_sinkhorn import selective_sinkhorn

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from polyroute.nn.corpora import Batch
    from polyroute.nn.moe import MoE

DIM, EXPERTS, KINDS, RUNS, LENGTH, STEPS = 16, 8, 8, 16, 8, 1500
SHARE, XI, BALANCE, OFFSET, NOISE, FLAT = 0.01, 0.1, 0.01, 0.5, 0.5, 0.02
ARMS = {"nothing": 32, "transport": 32, "dealt": 32, "balance": 32, "rows": 16}  # worlds of each
EXPERTS_RATE, RATE, BALANCED_RATE = 4e-3, 4e-2, 8e-2  # of experts, of routers, of those under a balance loss
HIGHER, LEVEL = 0.2, 1.0  # log ratio; of the mean load


@dataclass(frozen=True)
class Broken:
    """Selective Sinkhorn without its columns ("rows"), or with each plan's rows dealt over the tokens ("dealt")."""

    seed: int
    how: str

    def build(self, dim: int, num_experts: int) -> Broken:
        return self

    def __call__(self, logits_TE: Tensor, ctx: Any) -> Tensor:
        from polyroute.nn.sinkhorn import SelectiveSinkhorn

        norm = SelectiveSinkhorn(SHARE, XI, seed=self.seed)
        if not ctx.training or not norm.draws(ctx.step, ctx.layer):
            return logits_TE.softmax(-1)
        if self.how == "rows":
            return (logits_TE.detach() / XI).softmax(-1)
        return norm(logits_TE, ctx)[np.random.default_rng([self.seed, ctx.step, 7]).permutation(len(logits_TE))]


class Worlds:
    """Kinds of token of unequal frequency around one offset, for each seed; the mean of y has an error near 1."""

    def __init__(self, seeds: Sequence[int]):
        from polyroute.nn.corpora import Regress

        worlds = [Regress(KINDS, DIM, noise=NOISE, seed=seed) for seed in seeds]
        offset_WD = np.array([np.random.default_rng([seed, 5]).normal(size=DIM) for seed in seeds])
        offset_WD *= OFFSET * np.sqrt(DIM) / np.linalg.norm(offset_WD, axis=1, keepdims=True)
        self.centre_WCD = (np.stack([w.centre_CD for w in worlds]) + offset_WD[:, None]).astype(np.float32)
        smaller = np.float32(((1 + NOISE**2) / (1 + NOISE**2 + OFFSET**2)) ** 0.5)
        self.map_WCOD = np.stack([w.map_COD for w in worlds]) * smaller
        self.share_C = 1.0 / np.arange(1, KINDS + 1) / np.sum(1.0 / np.arange(1, KINDS + 1))

    def batch(self, rng: np.random.Generator, runs: int, length: int) -> Batch:
        """Tokens of each world [W, runs x length, D], in runs of one kind, and what their maps make of them."""
        import torch

        from polyroute.nn.corpora import Batch

        many = len(self.centre_WCD)
        kind_WB = rng.choice(KINDS, size=(many, runs), p=self.share_C)
        at = np.arange(many)[:, None], kind_WB
        x_WBLD = np.float32(NOISE) * rng.standard_normal((many, runs, length, DIM), dtype=np.float32)
        x = torch.from_numpy(x_WBLD + self.centre_WCD[at][:, :, None])
        y = torch.matmul(x, torch.from_numpy(self.map_WCOD[at]).transpose(2, 3))
        return Batch(x.flatten(1, 2), y.flatten(1, 2), torch.zeros(many, dtype=torch.int64))

    def stream(self, seed: int) -> Iterator[Batch]:
        """Batches without end."""
        rng = np.random.default_rng(seed)
        while True:
            yield self.batch(rng, RUNS, LENGTH)


def built(kind: str, seed: int) -> MoE:
    """The layer of one arm in one world; all arms begin with the same weights."""
    from polyroute.nn.scorers import Linear
    from polyroute.nn.testbed import seeded

    parts: dict[str, Any] = {"scorer": Linear(std=FLAT), "act": "identity"}
    with seeded(seed):
        if kind == "transport":
            return selective_sinkhorn(DIM, DIM, EXPERTS, k=1, p=SHARE, xi=XI, seed=seed, **parts)
        if kind in ("dealt", "rows"):
            parts["norm"] = Broken(seed, kind)
        balance = BALANCE if kind == "balance" else 0.0
        return softmax_top_k(DIM, DIM, EXPERTS, k=1, renorm=False, balance=balance, **parts)


def optimizer(layer: nn.Module, rate: float) -> optim.Optimizer:
    """AdamW at this rate for the router, at EXPERTS_RATE for the experts."""
    from polyroute.nn.testbed import adamw

    made = adamw(layer, rate)
    experts = {id(p) for name, p in layer.named_parameters() if name.startswith("pool")}
    first = made.param_groups[0]
    slow = [p for p in first["params"] if id(p) in experts]
    first["params"] = [p for p in first["params"] if id(p) not in experts]
    made.add_param_group({**{k: v for k, v in first.items() if k != "params"}, "params": slow})

    def slower(opt: optim.Optimizer, *_: Any) -> None:
        opt.param_groups[-1]["lr"] *= EXPERTS_RATE / rate

    made.register_step_pre_hook(slower)
    return made


def arm(seeds: Sequence[int], kind: str) -> dict[str, np.ndarray]:
    """Train a layer in each world; errors, MaxVio and the number of experts with under 2 % of the mean load."""
    import torch

    from polyroute.nn.metrics import max_vio
    from polyroute.nn.routing import count_pairs
    from polyroute.nn.side_by_side import side_by_side
    from polyroute.nn.testbed import train

    worlds, layer = Worlds(seeds), side_by_side([built(kind, seed) for seed in seeds])
    rate = BALANCED_RATE if kind == "balance" else RATE
    train(
        layer, worlds.stream(seeds[0]), steps=STEPS, lr=rate, seed=seeds[0], clip=float("inf"), progress=False,
        optimizer=optimizer(layer, rate),
    )  # fmt: skip
    batch = worlds.batch(np.random.default_rng([seeds[0], 9]), 4000, 1)
    with torch.no_grad():
        error_W = (layer.eval()(batch.x) - batch.y).square().mean((1, 2))
    assert layer.routing is not None
    counts = [count_pairs(exp_L, EXPERTS) for exp_L in layer.routing.exp_N.reshape(len(seeds), -1)]
    return {
        "error": error_W.numpy(),
        "max_vio": np.array([max_vio(count_E) for count_E in counts]),
        "dead experts": np.array([float((c * EXPERTS < 0.02 * c.sum()).sum()) for c in counts]),
    }


def more_level(seed: int) -> float:
    """MaxVio of softmax's two largest less that of the plan's, on one draw of skewed logits."""
    import torch

    from polyroute.nn.metrics import max_vio
    from polyroute.nn.routing import count_pairs
    from polyroute.nn.sinkhorn import transport_plan

    rng = np.random.default_rng([seed, 3])
    x_TD, w_DE = rng.normal(size=(1024, 8)), rng.normal(size=(8, 16))
    logits_TE = torch.from_numpy((x_TD @ w_DE / 8**0.5 + rng.normal(size=16)).astype(np.float32))
    plan_TE = transport_plan(logits_TE, xi=XI, iters=20)
    soft, plan = (max_vio(count_pairs(z.topk(2).indices.flatten(), 16)) for z in (logits_TE, plan_TE))
    return soft - plan


def prove(seed: int) -> Proof:
    """Five arms in the same worlds."""
    seeds = range(seed, seed + max(ARMS.values()))
    found = {kind: arm(seeds[:many], kind) for kind, many in ARMS.items()}

    def lower(kind: str, than: str) -> np.ndarray:
        many = min(ARMS[kind], ARMS[than])
        ratios: np.ndarray = np.log(found[than]["error"][:many] / found[kind]["error"][:many])
        return ratios

    ratio = "log ratio"
    rows: list[dict[str, Any]] = [
        {"arm": kind, **{key: float(value.mean()) for key, value in found[kind].items()}} for kind in ARMS
    ]
    return Proof(
        id=78,
        name="Selective Sinkhorn",
        claim="transport on 1 % of steps lowers the error as a tuned balance loss does, without a coefficient",
        baseline="Switch with nothing, with the same plans dealt at random, and with a tuned balance loss",
        effects=[
            effect_over_seeds("error with nothing over that with transport", lower("transport", "nothing"), ratio),
            effect_over_seeds("error with dealt plans over it", lower("transport", "dealt"), ratio),
            effect_over_seeds("error with a balance loss over it", lower("transport", "balance"), ratio, -HIGHER),
            effect_over_seeds(
                "MaxVio of softmax's two over the plan's", [more_level(s) for s in seeds], "of the mean load", LEVEL
            ),
        ],
        falsifier=effect_over_seeds("error with nothing over that with rows", lower("rows", "nothing"), ratio),
        seeds=list(seeds),
        rows=rows,
        figures={f"{key}, {row['arm']}": row[key] for row in rows for key in ("error", "max_vio")},
        notes="Second version, not passed in development: a tuned balance loss errs no more. Balance is not claimed.",
    )
