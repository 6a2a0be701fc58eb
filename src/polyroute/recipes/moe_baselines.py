"""The layers every published variant is compared with: each a configuration of the same parts, named in BASELINES.

All give a MoE of `dim` (D), `width` (F of an expert) and `num_experts`; `parts` are further arguments of MoE, `aux` are
added to those of the baseline. Call `aux_losses(model)` once a micro-batch and `end_step(model)` once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyroute.nn.moe import MoE


def softmax_top_k(
    dim: int, width: int, num_experts: int, *, k: int = 2, renorm: bool = True, balance: float = 0.01, **parts: Any
) -> MoE:
    """Softmax, the k largest, Switch's balance loss. renorm: gates sum to 1, which is a softmax over the chosen logits
    alone (Mixtral, arXiv:2401.04088); False: the probabilities as they are (OLMoE, arXiv:2409.02060). balance 0: none.
    """
    from polyroute.nn.gates import Raw, Renorm
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import TopK

    aux = (*((LBL(balance),) if balance else ()), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, select=TopK(k), gate=Renorm() if renorm else Raw(), aux=aux, **parts)


def noisy_top_k(dim: int, width: int, num_experts: int, *, k: int = 2, coef: float = 0.1, **parts: Any) -> MoE:
    """Logits with noise of a learned width while training, both starting flat; even importance and even expected load.

    coef: of each of the two objectives. Source: Shazeer et al. 2017 (arXiv:1701.06538).
    """
    from polyroute.nn.losses import Importance, NoisyLoad
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import Noise
    from polyroute.nn.scorers import Linear
    from polyroute.nn.selection import TopK

    mods = (Noise(learned=True), *parts.pop("mods", ()))
    aux = (Importance(coef), NoisyLoad(coef), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, scorer=Linear(std=0.0), mods=mods, select=TopK(k), aux=aux, **parts)


def switch(
    dim: int, width: int, num_experts: int, *, factor: float | None = 1.25, balance: float = 0.01, **parts: Any
) -> MoE:
    """One expert a token, its probability as gate; tokens beyond factor x T / E of an expert are dropped, so that
    results depend on the other tokens of the batch. factor None: nothing is dropped.

    Source: Switch transformer (arXiv:2101.03961).
    """
    from polyroute.nn.gates import Raw
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import Capacity, TopK

    select = TopK(1) if factor is None else Capacity(TopK(1), factor)
    aux = (LBL(balance), *parts.pop("aux", ()))
    return MoE(dim, width, num_experts, select=select, gate=Raw(), aux=aux, **parts)


def expert_choice(dim: int, width: int, num_experts: int, *, capacity: float = 2.0, **parts: Any) -> MoE:
    """Experts take their best tokens, capacity x T / E each: balanced by construction, no objective needed.

    For encoders: a causal model sees its own future through it. Source: Zhou et al. 2022 (arXiv:2202.09368).
    """
    from polyroute.nn.gates import Raw
    from polyroute.nn.moe import MoE
    from polyroute.nn.selection import ExpertChoice

    return MoE(dim, width, num_experts, select=ExpertChoice(capacity), gate=Raw(), **parts)


def sigmoid_bias(
    dim: int, width: int, num_experts: int, *, k: int = 2, rate: float = 1e-3, scale: float = 1.0,
    groups: tuple[int, int] | None = None, shared: int = 0, sequence_balance: float = 0.0, **parts: Any,
) -> MoE:  # fmt: skip
    """Sigmoid scores, chosen with a bias that follows the load, gates without it: balance without a loss.

    rate: of the bias, a step. scale: of the gates' sum (2.5 in DeepSeek-V3). groups: (how many groups the experts form,
    how many of them a token may use). shared: width of the expert every token uses. sequence_balance: coefficient of
    a small loss per sequence beside it. Source: DeepSeek-V3 (arXiv:2412.19437), Wang et al. 2024 (arXiv:2408.15664).
    """
    from polyroute.nn.gates import Renorm
    from polyroute.nn.losses import LBL
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import SelectionBias, Sigmoid
    from polyroute.nn.selection import GroupTopK, TopK

    select = TopK(k) if groups is None else GroupTopK(k, *groups)
    mods = (*parts.pop("mods", ()), SelectionBias(rate))
    aux = (*((LBL(sequence_balance, "sequence"),) if sequence_balance else ()), *parts.pop("aux", ()))
    chosen: dict[str, Any] = {"norm": Sigmoid(), "mods": mods, "select": select, "gate": Renorm(scale), "aux": aux}
    return MoE(dim, width, num_experts, shared=shared, **chosen, **parts)


def shared_experts(
    dim: int, width: int, num_experts: int, *, num_shared: int = 1, k: int = 2, balance: float = 0.01, **parts: Any
) -> MoE:
    """Softmax top-k beside experts that every token uses: ungated, and not counted as load.

    num_shared experts of one width are one dense network of num_shared times that. Source: DeepSeekMoE
    (arXiv:2401.06066).
    """
    return softmax_top_k(dim, width, num_experts, k=k, balance=balance, shared=num_shared * width, **parts)


BASELINES: Mapping[str, Callable[..., MoE]] = MappingProxyType(
    {
        "softmax top-k": softmax_top_k,
        "noisy top-k": noisy_top_k,
        "switch": switch,
        "expert choice": expert_choice,
        "sigmoid and bias": sigmoid_bias,
        "shared experts": shared_experts,
    }
)
