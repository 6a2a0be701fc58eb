"""A stream replayed: a router that learns while it serves, told only what its own choices yielded.

The table must hold every candidate's outcome, so that any choice can be paid out; the router sees the chosen one's
alone (bandit feedback). Each row is scored before it is learned from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, OutcomesError
from polyroute.protocols import OnlineRouter, Policy
from polyroute.types import Array, Objective, Outcomes, Rng


class Run(NamedTuple):
    """One pass over a stream of t queries."""

    rows: Array  # [t] int, rows of the table in the order served
    choice: Array  # [t] int, columns
    propensity: Array  # [t] P(choice) when it was made; 1 for a policy that leaves nothing to chance
    value: Array  # [t] utility the choices yielded


class Band(NamedTuple):
    """A curve over seeds."""

    mean: Array  # [t]
    low: Array  # [t] mean less two standard errors over the seeds
    high: Array  # [t]


def replay_online(
    router: OnlineRouter,
    policy: Policy,
    outcomes: Outcomes,
    objective: Objective,
    rng: Rng,
    *,
    order: Array | None = None,
    batch: int = 1,
    delay: int = 0,
    present: Callable[[int], Array] | None = None,
    full_feedback: bool = False,
) -> Run:
    """Serve the table's queries in a random order and learn from what was chosen.

    router: as it should start; it is changed. order: [t] rows, each once; None: drawn from rng. batch: decisions made
    on one state of the router before it learns. delay: steps until an outcome is known. present: step -> [m] bool, who
    is in the pool then; None: everyone always. full_feedback: all outcomes of a row are learned, not the chosen one's
    alone; what a bandit never has.
    Raises: OutcomesError for gaps in what the objective weighs; ConfigError.
    """
    if batch < 1 or delay < 0:
        name, got = ("batch", batch) if batch < 1 else ("delay", delay)
        raise ConfigError(name, got=got, expected="a number of steps (batch: 1 or more, delay: 0 or more)")
    truth = true_utility(outcomes, objective)
    order = rng.permutation(len(outcomes)) if order is None else np.asarray(order)
    choice, propensity = np.zeros(len(order), dtype=np.intp), np.ones(len(order))
    waiting: deque[int] = deque()  # steps whose outcome the router has not been told
    for start in range(0, len(order), batch):
        steps = np.arange(start, min(start + batch, len(order)))
        queries = [outcomes.queries[i] for i in order[steps]]
        allowed = np.array([np.ones(truth.shape[1], bool) if present is None else present(int(t)) for t in steps])
        estimates = router.predict(queries, outcomes.pool)
        chosen = policy.decide(estimates, objective, allowed, rng)
        choice[steps] = chosen.index[:, 0]
        if chosen.propensity is not None:
            propensity[steps] = chosen.propensity[:, 0]
        waiting.extend(steps.tolist())
        due = [waiting.popleft() for _ in range(sum(1 for t in waiting if t <= steps[-1] - delay))]
        if due:
            router.update(told(outcomes, order[due], choice[due], propensity[due], full_feedback))
    return Run(order, choice, propensity, truth[order, choice])


def told(outcomes: Outcomes, rows: Array, choice: Array, propensity: Array, everything: bool) -> Outcomes:
    """The log of some choices: the rows with only the chosen observed, or all."""
    log = outcomes.take(rows)
    if everything:
        return log
    seen = np.zeros(log.observed.shape, dtype=bool)
    seen[np.arange(len(rows)), choice] = True
    values = {name: np.where(seen, column, np.nan) for name, column in log.values.items()}
    return Outcomes(log.queries, log.pool, values, seen, log.labels, propensity)


def true_utility(outcomes: Outcomes, objective: Objective) -> Array:
    """What each choice would have yielded, [n, m]. Raises: OutcomesError for gaps or a metric the table lacks."""
    total = np.zeros((len(outcomes), len(outcomes.pool)))
    for name, weight in objective.weights.items():
        if name not in outcomes.values:
            raise OutcomesError(f"values[{name!r}]: expected a metric that the objective weighs, got none.")
        total = total + weight * np.where(outcomes.observed, outcomes.values[name], np.nan)
    if not np.isfinite(total).all():
        raise OutcomesError("values: expected every candidate's outcome on every query of a stream, got gaps.")
    return total


def best_static(outcomes: Outcomes, objective: Objective) -> int:
    """The column that would have been best for the whole stream, had it been known: the baseline in hindsight."""
    return int(true_utility(outcomes, objective).mean(axis=0).argmax())


def regret(run: Run, outcomes: Outcomes, objective: Objective, against: int | None = None) -> Array:
    """Utility lost up to each step, [t]: against one column, or against each query's best (None)."""
    truth = true_utility(outcomes, objective)[run.rows]
    best = truth.max(axis=1) if against is None else truth[:, against]
    lost: Array = np.cumsum(best - run.value)
    return lost


def band(curves: Sequence[Array]) -> Band:
    """Mean of curves [s, t] over seeds and two standard errors around it."""
    stacked = np.asarray(curves, dtype=float)
    mean = stacked.mean(axis=0)
    error = stacked.std(axis=0, ddof=1) / np.sqrt(len(stacked)) if len(stacked) > 1 else np.zeros_like(mean)
    return Band(mean, mean - 2 * error, mean + 2 * error)
