"""A decision on its way: the policy that is asked, the candidates in order, and what is written down of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polyroute.decide import Weighing
from polyroute.flows.cascade import Judge
from polyroute.flows.judging import Bench
from polyroute.gateway.conversations import NONE, Thread
from polyroute.gateway.records import DecisionRecord, Weighed
from polyroute.policies.session import StickyConfig
from polyroute.protocols import Constraint, Policy
from polyroute.routers.cascade import Cascade
from polyroute.types import Candidate, Estimates, Objective, Query

REFERENCE_PROMPT, REFERENCE_COMPLETION = 600, 200  # tokens of the request that turns a trade-off into USD


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedPolicy:
    """A virtual model: how to weigh, how to choose, among which candidates."""

    name: str
    policy: Policy
    objective: Objective
    pool: Sequence[Candidate]
    constraints: Sequence[Constraint] = ()
    trade_off: float | None = None
    sticky: StickyConfig | None = None  # what it costs to move a conversation; None: nothing
    settle: Callable[[float], None] | None = None  # told the USD of each finished request; budgets pace themselves
    cascade: Cascade | None = None  # reads an answer before another is paid for; None: nobody does


class Choice(NamedTuple):
    """A decision on its way: the candidates to try in order, and what is written down."""

    ranked: list[Candidate]
    record: DecisionRecord
    policy: ServedPolicy | None  # None: the client named a concrete model
    thread: Thread = NONE
    query: Query | None = None
    judge: Judge | None = None  # reads the answers as they come; None: the first answer is taken
    took: tuple[float, float] = (0.0, 0.0)  # seconds of reading the request and of deciding it


def new_id(prefix: str, pool: list[str] = []) -> str:  # noqa: B006  # the ids drawn ahead are shared on purpose
    """A fresh unguessable id: prefix and 24 hex digits, 11 of the time in 2**20 ns and 13 random ones.

    Ids that grow with time are added at the end of the journal's index, not all over it. Random bytes are fetched for
    256 ids at a time.
    """
    if not pool:
        digits = secrets.token_hex(13 * 128)
        pool.extend(digits[i : i + 13] for i in range(0, len(digits), 13))
    return f"{prefix}_{hex(time.time_ns() >> 20)[2:]}{pool.pop()}"


def usd_of(candidate: Candidate, prompt_tokens: float, completion_tokens: float) -> float:
    """The price of that many tokens at this candidate, USD."""
    profile = candidate.profile
    return (prompt_tokens * profile.price_in + completion_tokens * profile.price_out) / 1e6


def reference_cost(pool: Sequence[Candidate]) -> float:
    """USD of the reference request at the dearest candidate: what a trade-off of 1 sets equal to all of quality."""
    return max((usd_of(c, REFERENCE_PROMPT, REFERENCE_COMPLETION) for c in pool), default=0.0)


def objective_for(trade_off: float, pool: Sequence[Candidate]) -> Objective:
    """Quality less trade_off for each reference cost spent."""
    dearest = reference_cost(pool)
    return Objective({"quality": 1.0, "cost": -trade_off / dearest if dearest > 0 else 0.0})


def judge_of(
    cascade: Cascade, query: Query, allowed: Sequence[Candidate], objective: Objective, estimates: Estimates,
    pool: Sequence[Candidate],
) -> Judge | None:  # fmt: skip
    """Who reads the answers of one request; None where fewer than two of those allowed are ones it learned from.

    estimates: [1, m] of the pool.
    """
    known = [candidate for candidate in allowed if candidate.id in (cascade.rungs_ or ())]
    quality = objective.weights.get("quality", 0.0)
    if len(known) < 2 or quality <= 0:
        return None
    usd = -objective.weights.get("cost", 0.0) / quality  # quality given up for a USD
    bench, at = Bench(cascade, known), [pool.index(candidate) for candidate in known]
    bench.expect(query, estimates["quality"].mean[:, at], estimates["cost"].mean[:, at])
    return bench.judge(max(0.0, usd * cascade.reference_))


def weighed(weighing: Weighing, pool: Sequence[Candidate]) -> list[list[Weighed]]:
    """For each query one record a candidate: its estimates, its utility, and what ruled it out."""
    ids = [candidate.id for candidate in pool]
    means = {name: e.mean.tolist() for name, e in weighing.estimates.items()}
    stds = {name: e.std.tolist() for name, e in weighing.estimates.items() if e.std is not None}
    nothing = [()] * len(pool)  # zip of no metrics has no candidates either
    found = []
    for i, (utility, refused) in enumerate(zip(weighing.utility.tolist(), weighing.refused, strict=True)):
        columns = zip(*[rows[i] for rows in means.values()], strict=True) if means else nothing
        doubts = zip(*[rows[i] for rows in stds.values()], strict=True) if stds else nothing
        found.append([
            Weighed(
                id=name, mean=dict(zip(means, row, strict=True)), std=dict(zip(stds, doubt, strict=True)),
                utility=value, refused=refused.get(name),
            )
            for name, row, doubt, value in zip(ids, columns, doubts, utility, strict=True)
        ])  # fmt: skip
    return found


def in_order(decided: Sequence[str], pool: Sequence[Candidate], row: Sequence[Weighed]) -> list[Candidate]:
    """The chosen candidates first, then the other allowed ones by utility: the order of fallbacks.

    decided: ids. row: of each of the pool, in its order.
    """
    first = [pool[j] for name in decided for j, one in enumerate(row) if one.id == name]
    rest = [(-(one.utility or 0.0), j) for j, one in enumerate(row) if one.refused is None and one.id not in decided]
    return first + [pool[j] for _, j in sorted(rest)]
