"""Answers that are read before they are given: ask, judge what came, and pay for another only where that is worth it.

The judge is a fitted cascade (routers/cascade.py). Only whole answers of a chat can be held back: a stream is on its
way before it could be read, and a call of a tool is no text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from polyroute.errors import UpstreamError
from polyroute.flows.cascade import Judge, Judgement
from polyroute.gateway import transport
from polyroute.gateway.answers import Headers, Send
from polyroute.gateway.choice import usd_of
from polyroute.gateway.records import Try
from polyroute.gateway.relay import KIND_STATUS, RETRYABLE, Exchange, broken, deliver, plain
from polyroute.gateway.wire import Usage, read_seen, read_usage, replace_model
from polyroute.types import Candidate, Decision, Outcome

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway


class Message(msgspec.Struct):
    content: str | None = None


class Option(msgspec.Struct):
    message: Message | None = None


@dataclass(slots=True)
class Answer:
    """One whole answer as it came, and what the judge sees of it."""

    candidate: Candidate
    status: int
    headers: Headers
    data: bytes
    usage: Usage | None
    outcome: Outcome
    paid: Try


async def ask_and_read(
    gateway: Gateway, send: Send, road: Exchange, judge: Judge, headers: transport.Headers, body: bytes
) -> None:
    """Ask whom the judge names, until it accepts an answer; give the one it keeps.

    A backend that fails is passed over: for an answer already there, or else for the next of the ranking.
    """
    assert road.choice is not None
    assert road.choice.query is not None
    answers: list[Answer] = []
    asked: set[str] = set()
    failure: tuple[int, str, str] | Answer = (503, "no backend answered", "upstream_missing")
    while True:
        judgement = await asyncio.to_thread(judge, road.choice.query, [answer.outcome for answer in answers])
        note(road, answers, judgement)
        candidate = judgement.ask
        if candidate is None or candidate.id in asked:
            candidate = None if answers else next((c for c in road.choice.ranked if c.id not in asked), None)
        if candidate is None or (not answers and len(asked) >= gateway.max_attempts):
            break
        asked.add(candidate.id)
        road.candidate, road.attempts = candidate, road.attempts + 1
        try:
            answer = await ask(gateway, road, candidate, headers, body)
        except UpstreamError as error:
            gateway.failed(candidate.id, error.kind)
            road.error = f"{candidate.id}: {error}"
            failure = KIND_STATUS.get(error.kind, 502), road.error, f"upstream_{error.kind}"
            continue
        if answer.status in RETRYABLE:
            gateway.failed(candidate.id, str(answer.status))
            road.error, failure = f"{candidate.id}: status {answer.status}", answer
            continue
        gateway.worked(candidate.id)
        road.tries.append(answer.paid)
        if answer.status >= 400:  # the request is at fault, for this backend at least: an answer that is there stands
            failure = answer
            if answers:
                continue
            break
        answers.append(answer)
        gateway.observed(candidate.id, answer.paid.latency_s, answer.usage)
    kept = answers[judgement.keep] if answers else failure
    if isinstance(kept, tuple):
        return await broken(send, road, *kept)
    road.candidate, road.error = kept.candidate, None
    road.first_byte_s = perf_counter() - road.started
    await deliver(gateway, send, road, kept.status, kept.headers, kept.data)


async def ask(
    gateway: Gateway, road: Exchange, candidate: Candidate, headers: transport.Headers, body: bytes
) -> Answer:
    """One whole answer. Raises: UpstreamError, also where it is no JSON object."""
    backend = gateway.backends[candidate.id]
    road.path_taken = backend.path
    begin = perf_counter()
    spliced = replace_model(body, gateway.upstream_names[candidate.id])
    try:
        reply = await backend.send(road.path, headers, spliced, gateway.timeouts)
        try:
            data = await reply.read()
        finally:
            await reply.close()
    finally:
        took = perf_counter() - begin
        road.upstream_s += took
    encoding = next((value for name, value in reply.headers if name == b"content-encoding"), b"identity")
    try:
        seen = read_seen(plain(data, encoding))
    except msgspec.MsgspecError:
        raise UpstreamError("protocol", f"{candidate.id}: expected a JSON object, got {len(data)} bytes") from None
    usage, _ = read_usage(seen.usage)
    prompt, completion = (0, 0) if usage is None else (usage.prompt_tokens or 0, usage.completion_tokens or 0)
    paid = Try(
        model=candidate.id, status=reply.status, latency_s=took, prompt_tokens=prompt, completion_tokens=completion,
        cost_usd=usd_of(candidate, prompt, completion),
    )  # fmt: skip
    assert road.choice is not None
    decision = Decision(road.choice.record.id, (candidate.id,))
    outcome = Outcome(decision, {"cost": paid.cost_usd, "latency": took}, text_of(seen.choices))
    return Answer(candidate, reply.status, reply.headers, data, usage, outcome, paid)


def text_of(choices: msgspec.Raw) -> str:
    """What the first choice says; empty where it says nothing that is a text."""
    try:
        found = msgspec.json.decode(choices, type=list[Option])
    except msgspec.MsgspecError:
        return ""
    message = found[0].message if found else None
    return (message.content if message is not None else None) or ""


def note(road: Exchange, answers: Sequence[Answer], judgement: Judgement) -> None:
    """Say of the road which answer stands, and why."""
    if answers:
        kept = answers[judgement.keep].candidate.id
        others = [answer.candidate.id for answer in answers if answer.candidate.id != kept]
        sure = "" if judgement.sure is None else f", right with p={judgement.sure:.2f}"
        road.kept = f"{kept} kept{sure}" + (f"; also asked: {', '.join(others)}" if others else "")


def together(tries: Sequence[Try]) -> tuple[float, int, int]:
    """(USD, prompt tokens, completion tokens) of all answers paid for."""
    return (
        sum(paid.cost_usd for paid in tries),
        sum(paid.prompt_tokens for paid in tries),
        sum(paid.completion_tokens for paid in tries),
    )
