"""System 2, Router-R1 (arXiv:2506.09033): a language model thinks, asks models of a pool by name, reads, and answers.

`AgenticRouter` runs it with any backend; `learn_names` trains which name to call from rewards of whole traces, with a
small softmax policy in the place of the language model and a table of outcomes in the place of the pool. The paper
trains a 3B model by PPO (actor 1e-6, critic 1e-5, KL 0.001); here the steps are clipped and relative to a group.
Parts: flows/steps, flows/traces, offline/rewards, offline/policy_gradient, routers/softmax_policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.flows.cascade import recorded, run
from polyroute.flows.steps import steps
from polyroute.flows.traces import fault_of
from polyroute.offline.policy_gradient import GroupConfig, train_in_groups
from polyroute.offline.rewards import PercentileCost, mixed
from polyroute.routers.softmax_policy import SoftmaxPolicy
from polyroute.types import Array, Candidate, Decision, Outcome, Outcomes, Query, Rng

CONFIG = GroupConfig(group=8, batch=64, epochs=6, standardise=False)  # else a hair of cost weighs like an answer
BROKEN = -1.0  # reward of a trace that breaks a rule of the form


class Trace(NamedTuple):
    """One run of the loop."""

    text: str  # all that was written, from the first thought to the answer
    answer: str
    outcome: Outcome  # metrics: cost, latency and tokens of all calls, turns, format
    fault: str | None  # the rule of the form it breaks; None: none


class AgenticRouter:
    """A router language model and the pool it may ask. descriptors: id -> a line; a new model is added by a line."""

    def __init__(
        self,
        router: Candidate,
        pool: Sequence[Candidate],
        *,
        max_turns: int = 4,
        descriptors: Mapping[str, str] | None = None,
        fallback: Candidate | None = None,
    ):
        self.router, self.pool, self.max_turns = router, pool, max_turns
        self.descriptors, self.fallback = descriptors, fallback

    def run(self, query: Query, backend: Callable[[Decision], Outcome]) -> Trace:
        """Answer one query. Raises: ReplyError for garbage where there is no fallback; what the backend raises."""
        pieces: list[str] = []
        flow = steps(query, self.router, self.pool, descriptors=self.descriptors, max_turns=self.max_turns,
                     fallback=self.fallback, transcript=pieces)  # fmt: skip
        outcome = run(flow, backend)
        text = "".join(pieces)
        fault = fault_of(text, [c.id for c in self.pool], max_searches=self.max_turns)
        return Trace(text, outcome.text, outcome, fault)


class Graded(NamedTuple):
    """What whole traces are worth, by query and by the name that is asked."""

    outcome: Array  # [n, m] score of the answer, 0..1; 0 where the form is broken
    cost: Array  # [n, m] USD of all calls
    broken: Array  # [n, m] bool


def graded_traces(outcomes: Outcomes, names: Sequence[str], router_cost: float = 0.0) -> Graded:
    """Run the loop for every query and every name, asked once. names: of the table's pool, or made up.

    The router is a script that asks the name and repeats what it read; the pool says its recorded score.
    router_cost: USD of one turn of the router.
    """
    router, table = Candidate("router"), recorded(outcomes)
    agentic = AgenticRouter(router, outcomes.pool)
    shape = len(outcomes), len(names)
    found = Graded(np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool))
    for i, query in enumerate(outcomes.queries):
        for j, name in enumerate(names):

            def backend(decision: Decision, name: str = name) -> Outcome:
                if decision.candidate_ids != (router.id,):
                    outcome = table(decision)
                    return Outcome(decision, outcome.metrics, repr(outcome.metrics["quality"]))
                read = decision.prompt.rpartition("<information>")[2].partition("</information>")[0]
                asked = "<information>" in decision.prompt.rpartition("Question: ")[2]
                said = f"<answer>{read}</answer>" if asked else f"<think>whom?</think><search>{name}: it</search>"
                return Outcome(decision, {"cost": router_cost}, said)

            trace = agentic.run(query, backend)
            found.broken[i, j] = trace.fault is not None
            found.outcome[i, j] = 0.0 if trace.fault else float(trace.answer)
            found.cost[i, j] = trace.outcome.metrics["cost"]
    return found


def learn_names(
    graded: Graded,
    queries: Sequence[Query],
    pool: Sequence[Candidate],
    *,
    alpha: float = 0.0,
    cheapness: Callable[[Array], Array] | None = None,
    config: GroupConfig = CONFIG,
    rng: Rng,
) -> SoftmaxPolicy:
    """A policy over names trained on the traces' rewards. cheapness: costs -> 0..1; None: `PercentileCost`.

    Rewards: -1 for a broken form, else `offline.rewards.mixed`. Every name of `pool` is a choice, also a made-up one.
    """
    score = PercentileCost() if cheapness is None else cheapness

    def reward(rows: Array, choice: Array) -> Array:
        cell = rows[:, None], choice
        earned = mixed(graded.outcome[cell], score(graded.cost[cell]), alpha)
        return np.where(graded.broken[cell], BROKEN, earned)

    policy = SoftmaxPolicy()
    train_in_groups(policy, queries, pool, reward, config, rng)
    return policy
