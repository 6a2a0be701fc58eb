"""System 107, T2MIR: half of a layer's width from experts chosen by token, half from experts chosen by task.

The task side is trained by contrast: sequences of one task route alike, those of others apart. It replaces the
feed-forward part of the last layers of a model that learns from its context. Batches come from PairedTaskSampler.
Parts: Parallel, Noise, Importance, NoisyLoad, MLP scorer, InfoNCE. Source: T2MIR (arXiv:2506.05426).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyroute.errors import ConfigError

if TYPE_CHECKING:
    from polyroute.nn.transformer import TinyNet
    from polyroute.nn.wrappers import Parallel

TASK_SIDE = 1  # which of the two parts chooses by task


def task_experts(
    dim: int,
    width: int,
    *,
    token_experts: int = 6,
    task_experts: int = 8,
    k: int = 2,
    contrast: float = 0.01,
    ema: float = 0.005,
    scale: float = 1.0,
    balance: float = 0.1,
    pooled: bool = False,
) -> Parallel:
    """The layer [.., D] -> [.., D]: each side gives D / 2.

    contrast, ema, scale: of InfoNCE: coefficient (0 leaves it out), speed of its keys, size of its matrix at first.
    balance: coefficient of both balance losses of the token side; the task side has none. pooled: choose by the mean
    state of the sequence so far instead of each token's own. Call `end_step(model)` after each optimizer step.
    """
    from polyroute.nn.coupling import InfoNCE
    from polyroute.nn.inputs import Hidden, Pooled
    from polyroute.nn.losses import Importance, NoisyLoad
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import Noise
    from polyroute.nn.scorers import MLP
    from polyroute.nn.selection import TopK
    from polyroute.nn.wrappers import Parallel

    if dim % 2:
        raise ConfigError("dim", got=dim, expected="an even number: each side gives half of it")
    by_token = MoE(
        dim, width, token_experts, out=dim // 2, scorer=MLP(), select=TopK(k), mods=(Noise(learned=True),),
        aux=(Importance(balance), NoisyLoad(balance)) if balance else (),
    )  # fmt: skip
    by_task = MoE(
        dim, width, task_experts, out=dim // 2, scorer=MLP(), select=TopK(k),
        inp=Pooled(causal=True) if pooled else Hidden(), aux=(InfoNCE(contrast, ema, scale),) if contrast else (),
    )  # fmt: skip
    return Parallel([by_token, by_task])


def task_net(
    width_in: int, out: int, dim: int, num_layers: int, num_heads: int, width: int, *, context: int = 256,
    replaced: int = 1, **options: Any,
) -> TinyNet:  # fmt: skip
    """A small in-context learner: its last `replaced` layers are `task_experts`, the others dense, 2 x `width` wide.

    options: those of `task_experts`.
    """
    from polyroute.nn.experts import FeedForward
    from polyroute.nn.transformer import TinyNet

    def part(layer: int) -> Parallel | FeedForward:
        return task_experts(dim, width, **options) if layer >= num_layers - replaced else FeedForward(dim, 2 * width)

    return TinyNet(width_in, out, dim, num_layers, num_heads, part, context=context)
