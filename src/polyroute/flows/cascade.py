"""Try, check, escalate; and the three ways to run any flow: blocking, async, and against a recorded table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from polyroute.errors import NoCandidateError, OutcomesError, UnknownCandidateError, UnknownNameError
from polyroute.protocols import Flow
from polyroute.types import Candidate, Decision, Outcome, Outcomes, Query

ADDS_UP = ("cost", "latency", "prompt_tokens", "output_tokens")  # metrics that each try adds to


def cascade(query: Query, ladder: Sequence[Candidate], accept: Callable[[Outcome], bool]) -> Flow:
    """Try candidates in order until one is accepted; the last is taken as it is.

    accept: judges an outcome, for example by a verifier's score among its metrics; never asked about the last.
    Returns the last outcome with cost, latency and tokens of all tries together: a cascade pays for every rung.
    Raises: NoCandidateError if the ladder is empty.
    Source: FrugalGPT (arXiv:2305.05176); the check is an argument here.
    """
    if not ladder:
        raise NoCandidateError(query.id, {})
    tried: list[Outcome] = []
    for rung, candidate in enumerate(ladder):
        outcome = yield Decision(query.id, (candidate.id,), because=f"rung {rung + 1} of {len(ladder)}")
        tried.append(outcome)
        if rung + 1 < len(ladder) and accept(outcome):
            break
    return together(tried)


class Judgement(NamedTuple):
    """What is thought of the answers so far: which one is the likeliest, and whether it is worth asking on."""

    keep: int = -1  # place in `tried` of the answer to give
    ask: Candidate | None = None  # whom to ask next; None: the answer kept is accepted
    because: str = ""
    sure: float | None = None  # P(right) of the answer to give, where the judge says so


Judge = Callable[[Query, Sequence[Outcome]], Judgement]


def verified(query: Query, judge: Judge) -> Flow:
    """Ask, judge what came, and accept an answer or ask somebody else, as long as the judge says so.

    judge: sees all outcomes so far with their texts, none at first; see recipes/verified.py for a learned one. A
    candidate is asked once. Returns the outcome of the answer kept, with cost, latency and tokens of all tries.
    Raises: NoCandidateError if the judge asks nobody at all.
    """
    tried: list[Outcome] = []
    asked: set[str] = set()
    while True:
        judgement = judge(query, tried)
        if judgement.ask is None or judgement.ask.id in asked:
            break
        asked.add(judgement.ask.id)
        tried.append((yield Decision(query.id, (judgement.ask.id,), because=judgement.because)))
    if not tried:
        raise NoCandidateError(query.id, {})
    return together(tried, judgement.keep)


def together(tried: Sequence[Outcome], keep: int = -1) -> Outcome:
    """One outcome, with the metrics that add up summed over all. tried: one or more. keep: its place, else the last."""
    last = tried[keep]
    sums = {
        name: sum(outcome.metrics.get(name, 0.0) for outcome in tried)
        for name in ADDS_UP
        if any(name in outcome.metrics for outcome in tried)
    }
    return Outcome(last.decision, {**last.metrics, **sums}, last.text)


def run(flow: Flow, backend: Callable[[Decision], Outcome]) -> Outcome:
    """Carry a flow out, one decision after the other. What the backend raises reaches the caller."""
    decision = next(flow)
    while True:
        outcome = backend(decision)
        try:
            decision = flow.send(outcome)
        except StopIteration as done:
            result: Outcome = done.value
            return result


async def arun(flow: Flow, backend: Callable[[Decision], Awaitable[Outcome]]) -> Outcome:
    """`run`, awaiting the backend."""
    decision = next(flow)
    while True:
        outcome = await backend(decision)
        try:
            decision = flow.send(outcome)
        except StopIteration as done:
            result: Outcome = done.value
            return result


def replay(flow: Flow, outcomes: Outcomes, answers: Mapping[tuple[str, str], str] | None = None) -> Outcome:
    """`run` against a table: what the flow would have yielded. For many flows build `recorded(outcomes)` once."""
    return run(flow, recorded(outcomes, answers))


def recorded(outcomes: Outcomes, answers: Mapping[tuple[str, str], str] | None = None) -> Callable[[Decision], Outcome]:
    """A backend that looks outcomes up by query id and candidate id. answers: (query id, candidate id) -> text.

    It raises UnknownNameError or UnknownCandidateError for an id that is not in the table, and OutcomesError for a
    pair that was not observed or for a decision that mixes candidates, whose outcome no table holds.
    """
    row = {query.id: i for i, query in enumerate(outcomes.queries)}
    column = {candidate.id: j for j, candidate in enumerate(outcomes.pool)}

    def backend(decision: Decision) -> Outcome:
        if len(decision.candidate_ids) != 1:
            raise OutcomesError(
                f"query {decision.query_id!r}: expected a decision for 1 candidate, got "
                f"{len(decision.candidate_ids)} ({', '.join(decision.candidate_ids)}). A table holds no mixtures."
            )
        (candidate_id,) = decision.candidate_ids
        if decision.query_id not in row:
            raise UnknownNameError("query", decision.query_id, row)
        if candidate_id not in column:
            raise UnknownCandidateError([candidate_id], known=column)
        i, j = row[decision.query_id], column[candidate_id]
        if not outcomes.observed[i, j]:
            raise OutcomesError(
                f"query {decision.query_id!r}, candidate {candidate_id!r}: expected an observed outcome, got none. "
                f"Replay flows on a full table, or on the candidates that were tried."
            )
        text = (answers or {}).get((decision.query_id, candidate_id), "")
        return Outcome(decision, {name: float(values[i, j]) for name, values in outcomes.values.items()}, text)

    return backend
