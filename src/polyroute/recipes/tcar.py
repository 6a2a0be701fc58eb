"""System 86, TCAR (TCAndon-Router): a query goes to a set of agents, with a reason; their answers are refined into one.

The published router is a 4B language model that writes a reason and up to three ids: `routers/prompted.py` asks any
model so. `AgentSetRouter` is the form without one: a head an agent, started from the likeness to its description, and
the set of highest expected F1. An agent is added by its description. `refine` asks the chosen and has one merge.
Parts: routers/linear, routers/described, policies/expected_f1, flows/refine, offline/rewards (set_reward).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.policies.expected_f1 import ExpectedF1
from polyroute.routers.described import Described
from polyroute.routers.linear import Linear
from polyroute.types import Array, Candidate, Estimates, Objective, Outcomes, Query

NO_OBJECTIVE = Objective({"quality": 1.0})


class AgentSetRouter:
    """P(right) for each agent, and the set to ask. The table's quality is 1 for each agent that is right.

    oos_tau: below this probability of the likeliest agent the query is out of scope, and the set is empty.
    """

    def __init__(self, max_agents: int = 3, oos_tau: float = 0.3, l2: float = 1.0, rank: int | None = 64):
        self.policy = ExpectedF1(max_agents, oos_tau)
        self.l2, self.rank = l2, rank

    def fit(self, outcomes: Outcomes) -> Self:
        self.described_ = Described().fit(outcomes)
        self.heads_ = Linear("quality", "logistic", l2=self.l2, rank=self.rank, prior=self.described_).fit(outcomes)
        self.pool_ = list(outcomes.pool)
        return self

    def add_agent(self, agent: Candidate, examples: Outcomes | None = None) -> None:
        """A new agent, by the description in its profile; examples: outcomes with it in the pool, to learn more."""
        self.pool_ = [*(c for c in self.pool_ if c.id != agent.id), agent]
        if examples is not None:
            self.heads_.update(examples)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate] | None = None) -> Estimates:
        """P(right) [n, m] as `quality`."""
        return self.heads_.predict(queries, self.pool_ if pool is None else pool)

    def choose(self, queries: Sequence[Query], pool: Sequence[Candidate] | None = None) -> Array:
        """[n, k] columns, best first, -1 where the set is smaller."""
        estimates = self.predict(queries, pool)
        allowed = np.ones(estimates["quality"].mean.shape, dtype=bool)
        return self.policy.decide(estimates, NO_OBJECTIVE, allowed, np.random.default_rng(0)).index

    def route(self, queries: Sequence[Query]) -> list[tuple[str, ...]]:
        """The ids of each query's agents; empty: out of scope."""
        return [tuple(self.pool_[j].id for j in row if j >= 0) for row in self.choose(queries)]
