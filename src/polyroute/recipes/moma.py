"""System 36, MoMA: an agent if one fits and may act now, else the model that scores and price make the best compromise.

Agents: the query's nearest categories, agents of these that the dialogue's state allows, the nearest of them; none near
enough sends the query on to the models. Models: scores learned from comparisons, the Pareto set of score and cost, and
TOPSIS on the user's weight. What differs from the paper: linear heads on the featuriser's embedding stand for the
encoder with its mixture of experts, and similarity chooses among unmasked agents where a language model decodes.
Parts: routers/pairwise, policies/pareto, constraints (the mask).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownNameError
from polyroute.policies.pareto import Pareto
from polyroute.protocols import Constraint, Router
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Array, Candidate, Objective, Query

SCORE_AND_COST = Objective({"quality": 1.0, "cost": -1.0})  # the signs; Pareto has the weights


class AgentStateMachine:
    """Which agents may act in which state of a dialogue, and the state that follows.

    transitions: state -> {agent id: next state}. An agent not named in a state is masked there.
    """

    def __init__(self, transitions: Mapping[str, Mapping[str, str]]):
        self.transitions = {state: dict(moves) for state, moves in transitions.items()}
        for state, moves in self.transitions.items():
            if unknown := sorted(set(moves.values()) - set(self.transitions)):
                raise ConfigError(f"transitions.{state}", got=unknown, expected="next states that are states too")

    def agents(self, state: str) -> set[str]:
        """Agent ids that may act. Raises: UnknownNameError."""
        if state not in self.transitions:
            raise UnknownNameError("state", state, self.transitions)
        return set(self.transitions[state])

    def step(self, state: str, agent: str) -> str:
        """The state after this agent acted. Raises: UnknownNameError if it may not."""
        if agent not in self.agents(state):
            raise UnknownNameError(f"agent in state {state!r}", agent, self.agents(state))
        return self.transitions[state][agent]

    def mask(self, state: str) -> Constraint:
        """The state as a constraint: agents it does not name are ruled out; candidates of other kinds pass."""
        may = self.agents(state)

        def constraint(queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
            row = [c.kind != "agent" or c.id in may for c in pool]
            return np.array([row], dtype=bool).repeat(len(queries), axis=0)

        constraint.__name__ = constraint.__qualname__ = f"state {state}"
        return constraint


class AgentSide:
    """Nearest categories, then the nearest agent among those that may act.

    agents: agent id -> its category. k: categories looked at. none_below: cosine under which no agent fits.
    """

    def __init__(self, agents: Mapping[str, str], machine: AgentStateMachine, *, k: int = 3, none_below: float = 0.0):
        if k < 1:
            raise ConfigError("k", got=k, expected="a number of categories, 1 or more")
        self.agents, self.machine, self.k, self.none_below = dict(agents), machine, k, none_below
        self.centres_: Array = None  # [categories, d] unit rows

    def fit(self, queries: Sequence[Query], categories: Sequence[str] | Array) -> Self:
        """A category stands where the mean of its example queries points. categories: [n]."""
        x, label = unit_rows(embeddings(queries).astype(float)), np.asarray(categories, dtype=str)
        if missing := sorted(set(self.agents.values()) - set(label.tolist())):
            raise OutcomesError(f"categories: expected an example of each agent's, got none of {', '.join(missing)}.")
        self.names_ = [str(name) for name in np.unique(label)]
        self.centres_ = unit_rows(np.stack([x[label == name].mean(axis=0) for name in self.names_]))
        return self

    def choose(self, query: Query, state: str | None = None) -> str | None:
        """The agent's id, or None: no agent fits, ask a model. state: of the dialogue; None: nobody is masked."""
        if self.centres_ is None:
            raise NotFittedError(self)
        near = self.centres_ @ unit_rows(embeddings([query], self.centres_.shape[1]).astype(float))[0]
        may = set(self.agents) if state is None else self.machine.agents(state)
        open_to = [bool(may & {a for a, category in self.agents.items() if category == name}) for name in self.names_]
        order = [c for c in np.argsort(-near, kind="stable") if open_to[c]][: self.k]
        if not order or near[order[0]] < self.none_below:
            return None
        return next(a for a, category in self.agents.items() if a in may and category == self.names_[order[0]])


def choose_models(
    router: Router, queries: Sequence[Query], pool: Sequence[Candidate], weight: float, allowed: Array | None = None
) -> Array:
    """The model side: a column for each query, [n] int. router: of "quality" and "cost". weight: 1 best, 0 cheapest."""
    may = np.ones((len(queries), len(pool)), dtype=bool) if allowed is None else allowed
    policy = Pareto({"quality": weight, "cost": 1.0 - weight})
    chosen = policy.decide(router.predict(queries, pool), SCORE_AND_COST, may, np.random.default_rng(0))
    index: Array = chosen.index[:, 0]
    return index


def moma(
    query: Query, pool: Sequence[Candidate], side: AgentSide, models: Router, *, state: str | None, weight: float = 0.5
) -> str:
    """The id of the agent or model that takes the query."""
    if (agent := side.choose(query, state)) is not None:
        return agent
    rest = [c for c in pool if c.kind != "agent"]
    return rest[int(choose_models(models, [query], rest, weight)[0])].id
