"""System 61, mixture-of-experts in continual learning (arXiv:2406.16437): stop training the gate once it has settled.

Tasks come one after the other; whole data sets are routed. A loss asks not to give a task to an expert that would have
to move far for it. Freezing itself is for any model with MoE layers: nn/freeze.FreezeGate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from polyroute.nn.continual import LinearTasks
    from polyroute.nn.moe import MoE
    from polyroute.types import Array


class Learned(NamedTuple):
    """What a course of rounds left behind."""

    task_R: Array  # task of each round
    expert_R: Array  # who served it
    error_R: Array  # squared distance of that expert to the task's truth, right after the round
    last_R: Array  # the same after the last round
    frozen_at: int | None  # round from which the gate stood still

    @property
    def forgetting(self) -> float:
        """Mean rise of the error of the expert that served a round, from the round to the end."""
        return float((self.last_R - self.error_R).mean())


def frozen_gate(
    dim: int, num_experts: int, *, noise: float = 0.1, balance: float = 0.5, baseline: str | None = "ema"
) -> MoE:
    """A layer of linear experts that whole sequences are routed to, one expert each.

    noise: width of the uniform noise in the choice. balance: coefficient of the load balance over all rounds.
    baseline: of the locality loss; None is the published form, with which routing cycles (see nn/continuity).
    """
    from polyroute.nn.continual import LinearExperts, RunningBalance
    from polyroute.nn.continuity import TaskLocality
    from polyroute.nn.gates import Hard
    from polyroute.nn.inputs import Pooled
    from polyroute.nn.moe import MoE
    from polyroute.nn.normalise import UniformNoise
    from polyroute.nn.scorers import Linear
    from polyroute.nn.selection import TopK

    return MoE(
        dim,
        1,
        num_experts,
        inp=Pooled(),
        scorer=Linear(std=0.0),
        mods=(UniformNoise(noise, on="choice", sequence=True),),
        select=TopK(1, on="logits"),
        gate=Hard(1.0),
        pool=LinearExperts(dim, num_experts),
        aux=(TaskLocality(baseline=baseline), RunningBalance(balance)),
    )


def learn(
    world: LinearTasks,
    layer: MoE,
    *,
    rounds: int = 1000,
    lr: float = 0.05,
    freeze_after: int | None = None,
    gaps: tuple[float, float] = (0.05, 0.1),
    seed: int = 0,
) -> Learned:
    """One round after the other: route, fit the expert, tell the gate how far it had to move, one step of SGD.

    lr: of the gate, on the sum of a round's samples. freeze_after: rounds before which the gate is not frozen; None:
    never; the theory says num_experts / lr and more. gaps: see nn/freeze.ClearGaps.
    """
    import torch

    from polyroute.nn.freeze import ClearGaps, FreezeGate
    from polyroute.nn.moe import aux_losses
    from polyroute.nn.testbed import seeded

    rng = np.random.default_rng(seed)
    objective: Any = layer.aux[0]
    pool: Any = layer.pool
    freeze = None if freeze_after is None else FreezeGate(layer, ClearGaps(*gaps), after=freeze_after)
    gate = torch.optim.SGD(
        layer.router.parameters(), lr=lr * world.samples**2
    )  # the router reads the mean, not the sum
    task, expert, error = [], [], []
    with seeded(seed):
        for t in range(rounds):
            x_SD, y_S, n = world.round(rng)
            layer(x_SD[None])
            routing: Any = layer.routing
            chosen = int(routing.exp_N[0])
            moved_E = torch.zeros(pool.num_experts)
            moved_E[chosen] = pool.fit(chosen, x_SD, y_S)
            if not (freeze and freeze.done):
                objective.moved(moved_E)
                gate.zero_grad()
                loss: Any = sum(aux_losses(layer).values())
                loss.backward()
                gate.step()
                if freeze is not None:
                    freeze(t)
            task.append(n)
            expert.append(chosen)
            error.append(float((pool.w_ED[chosen] - world.truth_ND[n]).square().sum()))
    last = (pool.w_ED[expert] - world.truth_ND[task]).square().sum(-1).numpy()
    at = next(iter(freeze.frozen.values()), None) if freeze is not None else None
    return Learned(np.array(task), np.array(expert), np.array(error), last, at)
