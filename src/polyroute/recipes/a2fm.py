"""System 101, A2FM (arXiv:2510.12838): instant, reasoning or agentic, said in the first tag of the reply.

The published 32B model is trained by Adaptive Policy Optimisation: on each query every mode is forced three times and
three rollouts are free; choosing more than an easy query needs costs reward. Here the forced rollouts are full
information, so a small softmax gate climbs the expected reward exactly. The threshold between easy and hard is not
published (inferred). Parts: routers/softmax_policy, offline/rewards, flows/traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.flows.traces import read_mode
from polyroute.offline.rewards import adaptive_reward
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Array, Candidate, Estimates, Outcomes, Query, Rng

MODES = ("instant", "reasoning", "agentic")


class ModeRouter:
    """A gate over modes that learned from forced rollouts. modes: cheapest first; the first is the instant one.

    tau: share of right instant rollouts above which a query is easy; keep it between the shares that can occur.
    adaptive: False trains on accuracy alone, which is what the reward is held against. entropy: reward for staying
    undecided while training; without it a mode that few queries need is given up before it is learned.
    """

    def __init__(
        self, modes: Sequence[str] = MODES, *, alpha: float = 2.0, tau: float = 0.5, adaptive: bool = True,
        steps: int = 300, entropy: float = 0.01,
    ):  # fmt: skip
        if len(modes) < 2:
            raise ConfigError("modes", got=tuple(modes), expected="2 or more, cheapest first")
        self.modes, self.alpha, self.tau, self.adaptive, self.steps = tuple(modes), alpha, tau, adaptive, steps
        self.entropy = entropy
        self.policy_: SoftmaxPolicy | None = None

    def rewards(self, success: Array, easy_share: Array | None = None) -> Array:
        """[n, modes] mean reward of each mode's rollouts. success: [n, modes, rollouts] 0..1, in form and right.

        easy_share: [n] share of right instant rollouts; None: from `success` itself.
        """
        success = np.asarray(success, dtype=float)
        if success.ndim != 3 or success.shape[1] != len(self.modes):
            raise ShapeError("success", got=success.shape, expected=("n", len(self.modes), "rollouts"))
        if not ((success >= 0) & (success <= 1)).all():
            raise OutcomesError("success: expected shares in 0..1 for every forced rollout, got others or NaN.")
        if not self.adaptive:
            return success.mean(axis=2)
        share = success[:, 0].mean(axis=1) if easy_share is None else np.asarray(easy_share, dtype=float)
        instant = np.arange(len(self.modes)) == 0
        return adaptive_reward(
            success, 1.0, instant[None, :, None], share[:, None, None], threshold=self.tau, alpha=self.alpha
        ).mean(axis=2)

    def fit(self, queries: Sequence[Query], success: Array, easy_share: Array | None = None) -> Self:
        """Learn from forced rollouts of every mode on every query."""
        reward = self.rewards(success, easy_share)
        if len(queries) != len(reward):
            raise ShapeError("success", got=np.shape(success), expected=(len(queries), len(self.modes), "rollouts"))
        table = Outcomes(queries, self.pool, {"reward": reward}, np.ones(reward.shape, dtype=bool))
        self.policy_ = SoftmaxPolicy("reward", steps=self.steps, entropy=self.entropy).fit(table)
        return self

    @property
    def pool(self) -> list[Candidate]:
        return [Candidate(mode, "mode") for mode in self.modes]

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate] | None = None) -> Estimates:
        """`preference` for each mode [n, modes], as any router."""
        if self.policy_ is None:
            raise NotFittedError(self)
        return self.policy_.predict(queries, self.pool if pool is None else pool)

    def choose(self, queries: Sequence[Query]) -> Array:
        """[n] column of the likeliest mode."""
        choice: Array = self.predict(queries)["preference"].mean.argmax(axis=1)
        return choice

    def follow(self, reply: str, query: Query) -> tuple[str, bool]:
        """The mode a model's reply says, and whether it said one; where it is garbage, this gate decides instead."""
        mode = read_mode(reply, self.modes)
        return (mode, True) if mode is not None else (self.modes[int(self.choose([query])[0])], False)


def rollouts(probability: Array, count: int, rng: Rng) -> Array:
    """[n, modes, count] right or wrong, drawn from the probability [n, modes] that a rollout is right."""
    return (rng.random((*probability.shape, count)) < probability[..., None]).astype(float)
