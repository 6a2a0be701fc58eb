"""System 54, ORCH: agents chosen by a moving average of what they were worth, asked together, merged once.

An agent's worth is an exponential moving average of w_acc * correct - w_lat * latency - w_cost * cost, kept for each
context; the k of most worth answer, and a weighted vote merges them (log odds of the worth, then confidence, then fixed
order). Training-free. What differs from the paper: the merge is a vote and no language model; averages are keyed by the
task a classifier guesses; a candidate without outcomes starts from what the others do. Beta is 0.02 (inferred).
Parts: routers/running, routers/context, policies/greedy, policies/explore, flows/vote.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from polyroute.errors import NotFittedError
from polyroute.flows.vote import log_odds, vote
from polyroute.protocols import Flow
from polyroute.routers.context import Contexts, Contextual
from polyroute.routers.running import RunningMean
from polyroute.types import Array, Candidate, Outcome, Outcomes, Query

BETA = 0.02  # (inferred)
KAPPA = 2.0  # outcomes that what is known elsewhere is worth in a context


def averages(contexts: Contexts | None = None, *, beta: float = BETA, kappa: float = KAPPA) -> Contextual | RunningMean:
    """The router before its first outcome: worth of each agent, by context where contexts are given.

    contexts: fitted, one one-hot block (see `task_contexts`); None: one average an agent for everything.
    """
    running = RunningMean("quality", 0.5, kappa=kappa, memory=1.0 / beta, keyed=contexts is not None)
    if contexts is None:
        return running
    if not contexts.fitted:
        raise NotFittedError(contexts)
    return Contextual(running, contexts)


def task_contexts(queries: Sequence[Query], tasks: Sequence[str] | Array) -> Contexts:
    """Contexts of the guessed task alone. tasks: [n] labels of these queries; later ones are guessed."""
    return Contexts(0, (), constant=False).fit(queries, tasks)


def worth(outcomes: Outcomes, *, latency: float = 0.0, cost: float = 0.0) -> Outcomes:
    """The table with quality replaced by what an answer was worth, 0..1 for weights of 0.

    latency, cost: weights; both metrics are divided by their largest value seen, so that units do not matter.
    """
    value = outcomes.values["quality"].copy()
    for name, weight in (("latency", latency), ("cost", cost)):
        if weight:
            column = outcomes.values[name]
            value = value - weight * column / max(float(np.nanmax(column)), 1e-300)
    return Outcomes(
        outcomes.queries, outcomes.pool, {**outcomes.values, "quality": value}, outcomes.observed, outcomes.labels,
        outcomes.propensity,
    )  # fmt: skip


def orchestrate(
    router: Contextual | RunningMean,
    query: Query,
    agents: Sequence[Candidate],
    answer: Callable[[Outcome], Hashable | None],
    *,
    k: int = 3,
    choices: float = 4.0,
    confidence: Callable[[Outcome], float] | None = None,
    early: bool = False,
) -> Flow:
    """Ask the k agents of most worth for this query and merge what they say; see `flows/vote.py`.

    choices: how many answers there are to choose from, which says what guessing is worth.
    """
    mean = router.predict([query], agents)["quality"].mean[0]
    first = np.argsort(-mean, kind="stable")[:k]
    weights = np.maximum(log_odds(mean[first], choices), 0.0)
    if not weights.any():  # nobody is known to beat guessing
        weights = np.ones(len(first))
    return vote(query, [agents[j] for j in first], answer, weights.tolist(), confidence=confidence, early=early)


def agree_or_ask(
    query: Query, cheap: Sequence[Candidate], dear: Candidate, answer: Callable[[Outcome], Hashable | None]
) -> Flow:
    """Take what all cheap agents agree on, else the dear one's answer: a vote that stops early."""
    weights = [1.0] * len(cheap) + [len(cheap) - 0.5]
    return vote(query, [*cheap, dear], answer, weights, early=True)
