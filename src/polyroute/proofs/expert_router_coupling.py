"""Proof of system 25, expert-router coupling: router rows come to know what their experts answer to.

Data: characters of four domains, a transformer of one block, D 32, 16 experts of width 16, 2 a token; 300 steps of 16
windows of 64 characters; judged on 10,000 held-out characters. ERC with alpha 0.5.
Baseline: the same model, first weights and batches with load balance alone (0.01, as beside ERC).
Claims, over six seeds: (1) on held-out tokens the likeliest expert stands higher among all experts by how strongly the
token excites it (share of the others it outdoes); (2) the smallest alpha a layer satisfies ends at 0.5 with ERC (at
most 0.55) and (3) above 1 by more than 0.5 without; (4) the held-out loss is at most 2 % worse.
Falsifier: the same loss with every row tied to its neighbour's expert; (1) must not rise above the baseline's.
Not claimed: a lower loss of the language model. Developed at seeds 100 to 104 and 200 to 220, where at alpha 1, the
published value, (2) and (3) held (0.73 to 0.75, 1.4 to 2.2) and the share of tokens whose likeliest expert is exactly
the one they excite most moved by +5 points [-10, +20]: too little and too noisy. That share stands in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.expert_router_coupling import agreement, expert_router_coupling, standing

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.moe import MoE
    from polyroute.nn.transformer import TinyLM

DIM, WIDTH, EXPERTS, STEPS, LENGTH = 32, 16, 16, 300, 64
ALPHA, ALPHA_OVER, LOSS_OVER = 0.5, 0.05, 2.0  # what still counts as alpha; per cent


@dataclass(frozen=True)
class WrongPairs:
    """ERC with every router row tied to its neighbour's expert (the falsifier)."""

    coef: float = 1.0
    name: ClassVar[str] = "wrong_pairs"

    def build(self, dim: int, num_experts: int) -> WrongPairs:
        return self

    def __call__(self, routing: Any, layer: MoE) -> Tensor:
        from polyroute.nn.coupling import coupling, coupling_loss, rows_and_gates, shaken

        rows_ED, gates_EFD = rows_and_gates(layer)
        return coupling_loss(coupling(shaken(rows_ED), gates_EFD.roll(1, 0)), ALPHA)


def arm(seed: int, **parts: Any) -> dict[str, float]:
    """Train one model; read held-out loss, standing and agreement in per cent, alpha, coupling loss, MaxVio."""
    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.coupling import coupling, coupling_loss, rows_and_gates, tightest_alpha
    from polyroute.nn.moe import layers
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.nn.transformer import TinyLM

    def layer_of(_: int) -> MoE:
        return expert_router_coupling(DIM, WIDTH, EXPERTS, alpha=ALPHA, **parts)

    with seeded(seed):
        model = TinyLM(Chars.vocab, DIM, 1, 2, layer_of, context=LENGTH)
    train(model, batches(Chars(LENGTH, seed=seed), 16, seed=seed), steps=STEPS, seed=seed)
    text = Chars(LENGTH, held_out=True, seed=seed)
    readout = evaluate(model, batches(text, 16, seed=seed))
    (layer,) = layers(model).values()
    m_EE = coupling(*rows_and_gates(layer)).detach()
    return {
        "loss": readout.loss,
        **read(model, layer, batches(text, 64, seed=seed + 1)),
        "alpha": tightest_alpha(m_EE),
        "coupling loss / diagonal": float(coupling_loss(m_EE, ALPHA) / m_EE.diagonal().mean()),
        "max_vio": next(iter(readout.max_vio.values())),
    }


def read(model: TinyLM, layer: MoE, stream: Any) -> dict[str, float]:
    """Standing and agreement of 4,096 held-out characters, per cent."""
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach().flatten(0, 1)))
    model.eval()
    model(next(stream).x)
    hook.remove()
    return {"standing": 100.0 * standing(layer, inputs[0]), "agreement": 100.0 * agreement(layer, inputs[0])}


def prove(seed: int) -> Proof:
    """Six seeds; three arms in each."""
    seeds = range(seed, seed + 6)
    plain = [arm(s, coef=0.0) for s in seeds]
    coupled = [arm(s) for s in seeds]
    wrong = [arm(s, coef=0.0, aux=(WrongPairs(),)) for s in seeds]

    def of(found: list[dict[str, float]], key: str) -> np.ndarray:
        return np.array([each[key] for each in found])

    worse = 100 * (of(plain, "loss") / of(coupled, "loss") - 1)
    more = of(coupled, "standing") - of(plain, "standing")
    broken = of(wrong, "standing") - of(plain, "standing")
    arms = {"load balance": plain, "with ERC": coupled, "with wrong pairs": wrong}
    return Proof(
        id=25,
        name="ERC loss",
        claim="tied to their experts, router rows send tokens to experts that these excite more (characters)",
        baseline="load balance alone",
        effects=[
            effect_over_seeds("experts that the likeliest one outdoes", more, "points"),
            effect_over_seeds("0.5 - alpha with ERC", ALPHA - of(coupled, "alpha"), "", -ALPHA_OVER),
            effect_over_seeds("alpha - 1 without", of(plain, "alpha") - 1, "", 0.5),
            effect_over_seeds("held-out loss of the baseline over ERC's", worse, "per cent", -LOSS_OVER),
        ],
        falsifier=effect_over_seeds("the same share with every row tied to its neighbour's expert", broken, "points"),
        seeds=list(seeds),
        rows=[{"arm": name, **{key: float(of(found, key).mean()) for key in found[0]}} for name, found in arms.items()],
        figures={f"standing, {name}": float(of(found, "standing").mean()) for name, found in arms.items()},
        notes="The loss of the language model is about 1 % higher, within the margin; a lower one is not claimed.",
    )
