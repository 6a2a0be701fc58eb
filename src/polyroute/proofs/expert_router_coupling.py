"""Proof of system 25, expert-router coupling: router rows come to know what their experts answer to.

Data: characters of four domains, a transformer of one block, D 32, 16 experts of width 16, 2 a token; 300 steps of 16
windows of 64 characters; judged on 10,000 held-out characters.
Baseline: the same model, first weights and batches with load balance alone (0.01, as beside ERC).
Claims, over four seeds: (1) the share of held-out tokens whose likeliest expert is the one they excite most rises;
(2) the smallest alpha that a layer satisfies ends at 1 (at most 1.05) with ERC, and (3) above 1 by more than 0.5
without; (4) the held-out loss is at most 2 % worse.
Falsifier: the same loss with every row tied to its neighbour's expert; agreement must not rise above the baseline's.
Not claimed: a lower loss of the language model. Load and the loss of the coupling itself stand in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from polyroute.proofs.proof import Proof, effect_over_seeds
from polyroute.recipes.expert_router_coupling import agreement, expert_router_coupling

if TYPE_CHECKING:
    from torch import Tensor

    from polyroute.nn.moe import MoE
    from polyroute.nn.transformer import TinyLM

DIM, WIDTH, EXPERTS, STEPS, LENGTH = 32, 16, 16, 300, 64
ALPHA_OVER, LOSS_OVER = 0.05, 2.0  # what counts as 1; per cent


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
        return coupling_loss(coupling(shaken(rows_ED), gates_EFD.roll(1, 0)))


def arm(seed: int, **parts: Any) -> dict[str, float]:
    """Train one model; read held-out loss, agreement in per cent, alpha, coupling loss over the diagonal, MaxVio."""
    from polyroute.nn.chars import Chars
    from polyroute.nn.corpora import batches
    from polyroute.nn.coupling import coupling, coupling_loss, rows_and_gates, tightest_alpha
    from polyroute.nn.testbed import evaluate, seeded, train
    from polyroute.nn.transformer import TinyLM

    def layer_of(_: int) -> MoE:
        return expert_router_coupling(DIM, WIDTH, EXPERTS, **parts)

    with seeded(seed):
        model = TinyLM(Chars.vocab, DIM, 1, 2, layer_of, context=LENGTH)
    train(model, batches(Chars(LENGTH, seed=seed), 16, seed=seed), steps=STEPS, seed=seed)
    text = Chars(LENGTH, held_out=True, seed=seed)
    readout = evaluate(model, batches(text, 16, seed=seed))
    layer = model.stack.blocks[0].ffn
    m_EE = coupling(*rows_and_gates(layer)).detach()
    return {
        "loss": readout.loss,
        "agreement": agreed(model, layer, batches(text, 64, seed=seed + 1)),
        "alpha": tightest_alpha(m_EE),
        "coupling loss / diagonal": float(coupling_loss(m_EE) / m_EE.diagonal().mean()),
        "max_vio": next(iter(readout.max_vio.values())),
    }


def agreed(model: TinyLM, layer: MoE, stream: Any) -> float:
    """Per cent of 4,096 held-out characters sent first to the expert they excite most."""
    inputs = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach().flatten(0, 1)))
    model.eval()
    model(next(stream).x)
    hook.remove()
    return 100.0 * agreement(layer, inputs[0])


def prove(seed: int) -> Proof:
    """Four seeds; three arms in each."""
    seeds = range(seed, seed + 4)
    plain = [arm(s, coef=0.0) for s in seeds]
    coupled = [arm(s) for s in seeds]
    wrong = [arm(s, coef=0.0, aux=(WrongPairs(),)) for s in seeds]

    def of(found: list[dict[str, float]], key: str) -> np.ndarray:
        return np.array([each[key] for each in found])

    worse = 100 * (of(plain, "loss") / of(coupled, "loss") - 1)
    more = of(coupled, "agreement") - of(plain, "agreement")
    broken = of(wrong, "agreement") - of(plain, "agreement")
    arms = {"load balance": plain, "with ERC": coupled, "with wrong pairs": wrong}
    return Proof(
        id=25,
        name="ERC loss",
        claim="tied to their experts, router rows send tokens to the experts they excite most (characters, 16 experts)",
        baseline="load balance alone",
        effects=[
            effect_over_seeds("likeliest expert is the one excited most", more, "points"),
            effect_over_seeds("1 - alpha with ERC", 1 - of(coupled, "alpha"), "", -ALPHA_OVER),
            effect_over_seeds("alpha - 1 without", of(plain, "alpha") - 1, "", 0.5),
            effect_over_seeds("held-out loss of the baseline over ERC's", worse, "per cent", -LOSS_OVER),
        ],
        falsifier=effect_over_seeds("the same share with every row tied to its neighbour's expert", broken, "points"),
        seeds=list(seeds),
        rows=[{"arm": name, **{key: float(of(found, key).mean()) for key in found[0]}} for name, found in arms.items()],
        figures={f"agreement, {name}": float(of(found, "agreement").mean()) for name, found in arms.items()},
        notes="The loss of the language model is not worse; that it is better is not claimed.",
    )
