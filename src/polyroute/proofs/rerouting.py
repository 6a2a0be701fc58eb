"""Proof of system 17, rewiring experts on the fly: a vector fitted to the prompt puts misled routers right.

Claim, fixed before the final seeds: eight linear experts and their router learn four domains (a linear map each, told
by where its inputs lie). At test all inputs are moved by one constant vector of length 4: experts still fit, routes do
not. Fitted to the first 32 tokens of a sequence at the published settings (5 steps, rate 0.05), the vector lowers the
squared error of the next 32. Baselines: the model as it is, and the same fit of as simple a thing elsewhere: one vector
added to the output. Inputs that are not moved do not get worse by more than 1 %, and neither does a tiny language
model, trained mostly on two domains of text, on an even mixture of four. Falsifier: the vector of a sequence of
another domain. Whether more steps help further stands in the rows, as does the language model's gain.

Second version: eight layers and eight language models. The first had five and three, which left intervals so wide that
at seed 31 "not worse by more than 1 %" missed by a tenth of a percent on the language model. Third version: 16 layers,
since single ones lose: at seed 23 the mean of eight on inputs as trained was +20.8 % [-10.2, +51.7]. Nothing else is
changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.types import Rng

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyroute.nn.corpora import Batch, Regress

SHIFT, HALF, SEQUENCES, STEPS = 4.0, 32, 24, 400
LM_MIXTURE, LM_STEPS = (0.45, 0.45, 0.05, 0.05), 250
LAYERS, MODELS = 16, 8


def moved_batch(world: Regress, rng: Rng, size: float) -> Batch:
    """Sequences whose inputs are moved by one vector of this length; the maps are those of their domains."""
    import torch

    from polyroute.nn.corpora import Batch

    batch = world.batch(rng, SEQUENCES)
    direction = rng.normal(size=world.dim)
    x_BLD = batch.x + torch.tensor(size * direction / np.linalg.norm(direction), dtype=torch.float32)
    return Batch(x_BLD, x_BLD @ torch.from_numpy(world.map_COD)[batch.domain_B].mT, batch.domain_B)


def halves(batch: Batch, i: int) -> tuple[Batch, Batch]:
    """Sequence i cut in two: what is fitted to, and what is judged."""
    from polyroute.nn.corpora import Batch

    x, y, domain = batch.x[i : i + 1], batch.y[i : i + 1], batch.domain_B[i : i + 1]
    half = x.shape[1] // 2
    return Batch(x[:, :half], y[:, :half], domain), Batch(x[:, half:], y[:, half:], domain)


def with_output_vector(model: nn.Module, context: Batch, lr: float, steps: int) -> Tensor:
    """The baseline: what the same fit makes of a vector on the output [O]."""
    import torch

    with torch.no_grad():
        left = context.y - model(context.x)
    vector = torch.zeros(left.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([vector], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            (left - vector).square().mean().backward()
            optimizer.step()
    return vector.detach()


def errors(model: nn.Module, batch: Batch, **settings: Any) -> dict[str, float]:
    """Squared error of the second halves: as the model is, and with what is fitted to the first halves."""
    import torch

    from polyroute.nn.testbed import task_loss
    from polyroute.recipes.rerouting import rerouting

    router = rerouting(model, **settings)
    found: dict[str, list[float]] = {"frozen": [], "rewired": [], "output vector": [], "another domain's vector": []}
    for i in range(len(batch.x)):
        context, rest = halves(batch, i)
        others = (batch.domain_B != batch.domain_B[i]).nonzero()
        with torch.no_grad():
            found["frozen"].append(float(task_loss(model, rest)))
            vector = with_output_vector(model, context, router.lr, router.steps)
            found["output vector"].append(float((rest.y - model(rest.x) - vector).square().mean()))
        for name, source in (("rewired", i), ("another domain's vector", int(others[i % len(others)]))):
            with router.rewired(halves(batch, source)[0]), torch.no_grad():
                found[name].append(float(task_loss(model, rest)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def regress_seed(seed: int) -> dict[str, dict[str, float]]:
    """Errors of one trained layer on moved inputs, at published and at stronger settings, and on inputs as trained."""
    from polyroute.nn.corpora import Regress, batches
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.testbed import seeded, train

    world = Regress(4, 16, length=2 * HALF, seed=seed)
    with seeded(seed):
        model = MoE(16, 16, 8, act="identity", aux=(LBL(0.01),))
    train(model, batches(world, 16, seed=seed), steps=STEPS, lr=1e-2, seed=seed)
    rng = np.random.default_rng(seed + 1000)
    moved, plain = moved_batch(world, rng, SHIFT), moved_batch(world, rng, 0.0)
    return {
        "moved": errors(model, moved),
        "moved, rate 0.3, 10 steps": errors(model, moved, lr=0.3, steps=10),
        "not moved": errors(model, plain),
    }


def lm_seed(seed: int) -> dict[str, float]:
    """Nats a character of second halves of text, frozen and rewired: on the even mixture, and as trained."""
    import torch

    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.moe import MoE
    from polyroute.nn.testbed import seeded, task_loss, train
    from polyroute.nn.transformer import TinyLM
    from polyroute.recipes.rerouting import rerouting

    corpus = Chars(length=64, mixture=LM_MIXTURE, size=20_000, seed=seed)
    with seeded(seed):
        model = TinyLM(corpus.vocab, 32, 2, 2, lambda layer: MoE(32, 32, 8), context=64)
    train(model, batches(corpus, 8, seed=seed), steps=LM_STEPS, seed=seed)
    found, router = {}, rerouting(model)
    for name, mixture in (("even", None), ("as trained", LM_MIXTURE)):
        text = Chars(length=64, mixture=mixture, size=20_000, held_out=True, seed=seed)
        batch, sums = text.batch(np.random.default_rng(seed + 1000), SEQUENCES), np.zeros(2)
        for i in range(SEQUENCES):
            context, _ = halves(batch, i)
            rest = batch._replace(x=batch.x[i : i + 1], y=batch.y[i : i + 1].clone())
            rest.y[:, :HALF] = -100  # the second half, read after the first
            with torch.no_grad():
                sums[0] += float(task_loss(model, rest))
            with router.rewired(context), torch.no_grad():
                sums[1] += float(task_loss(model, rest))
        found[f"{name}, frozen"], found[f"{name}, rewired"] = (sums / SEQUENCES).tolist()
    return found


def less(found: list[dict[str, float]], name: str, than: str) -> list[float]:
    """How much lower an error is than another, %, a value a seed."""
    return [100 * (1 - f[name] / f[than]) for f in found]


def prove(seed: int) -> Proof:
    """LAYERS trained layers, MODELS language models."""
    seeds = range(seed, seed + LAYERS)
    layers = [regress_seed(s) for s in seeds]
    moved, plain = [f["moved"] for f in layers], [f["not moved"] for f in layers]
    texts = [lm_seed(s) for s in seeds[:MODELS]]
    rows = [
        {"inputs": kind, **{name: float(np.mean([f[kind][name] for f in layers])) for name in layers[0][kind]}}
        for kind in layers[0]
    ]
    return Proof(
        id=17,
        name="Rewiring experts on the fly",
        claim="five steps on the prompt put routers right that moved inputs mislead; nothing else gets worse",
        baseline="the model as it is; the same fit of one vector on the output",
        effects=[
            effect_over_seeds("error below the frozen model's", less(moved, "rewired", "frozen"), "%"),
            effect_over_seeds("error below the output vector's", less(moved, "rewired", "output vector"), "%"),
            effect_over_seeds("inputs as trained: not worse", less(plain, "rewired", "frozen"), "%", -1.0),
            effect_over_seeds("LM, other mixture: not worse", less(texts, "even, rewired", "even, frozen"), "%", -1.0),
            effect_over_seeds(
                "LM, text as trained: not worse", less(texts, "as trained, rewired", "as trained, frozen"), "%", -1.0
            ),
        ],
        falsifier=effect_over_seeds(
            "with a vector of another domain", less(moved, "another domain's vector", "frozen"), "%"
        ),
        seeds=list(seeds),
        rows=rows,
        notes="On the language model only no harm is claimed, not a gain.",
        figures={f"LM {name}": float(np.mean([f[name] for f in texts])) for name in texts[0]},
    )
