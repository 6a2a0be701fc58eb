"""Puts self-checking questions to one model: a few at a time, patient with busy servers, counting what fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from polyroute.data.probes import Probe
from polyroute.errors import UpstreamError
from polyroute.gateway.backends.status import Backend
from polyroute.gateway.transport import Reply, Timeouts

PATIENT = Timeouts(first_byte_s=300.0, idle_s=120.0, total_s=600.0)
BUSY = (429, 502, 503, 529)  # try again
TRIES = 4  # a question, while the server is busy
HOPELESS = 6  # failures without one answer: the others would fail too
HEADERS = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]


class Timing(msgspec.Struct, frozen=True):
    """A llama.cpp server's own stopwatch, for one answer."""

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one question."""

    id: str
    skill: str
    level: int
    prompt: str
    expected: str
    reply: str = ""
    score: float | None = None  # None: no answer came
    problem: str = ""  # why none came
    cut: bool = False  # the answer ended at the limit of tokens
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    timing: Timing | None = None

    @property
    def family(self) -> str:
        return self.id.rsplit("-", 2)[0]


class Speeds(NamedTuple):
    """Tokens per second; None: not known."""

    generate: float | None
    prefill: float | None
    first_token_s: float | None
    source: str  # whose stopwatch


@dataclass(kw_only=True)
class Interview:
    """Asks one backend.

    model: the name it knows. limit: completion tokens of an answer. at_once: questions under way together. tell: given
    each answer as it comes, so that an interrupted interview loses nothing that was answered.
    """

    backend: Backend
    model: str
    limit: int = 128
    at_once: int = 4
    timeouts: Timeouts = PATIENT
    tell: Callable[[Answer], None] = lambda answer: None
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    limit_name: str = "max_tokens"  # newer models of some servers know it by another name
    extras: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})

    async def ask(self, probes: Sequence[Probe]) -> list[Answer]:
        """Answers in the order of the probes. Ends early, with fewer, once it is clear that none will come."""
        self.answers: list[Answer] = []
        gate = asyncio.Semaphore(self.at_once)

        async def one(probe: Probe) -> None:
            async with gate:
                if not self.hopeless(len(probes)):
                    answer = await self.answer(probe)
                    self.answers.append(answer)
                    self.tell(answer)

        async with asyncio.TaskGroup() as group:
            for probe in probes:
                group.create_task(one(probe))
        order = {probe.id: i for i, probe in enumerate(probes)}
        return sorted(self.answers, key=lambda answer: order[answer.id])

    def hopeless(self, total: int) -> bool:
        failed = sum(answer.score is None for answer in self.answers)
        return failed > total / 2 or (failed >= HOPELESS and failed == len(self.answers))

    async def answer(self, probe: Probe) -> Answer:
        """One question, asked again while the server is busy, and in other words where it does not know ours."""
        problem = ""
        for attempt in range(TRIES):
            begin, sent = perf_counter(), self.body(probe)
            try:
                reply = await self.backend.send("/v1/chat/completions", HEADERS, sent, self.timeouts)
                data = await reply.read()
            except UpstreamError as error:
                return unanswered(probe, str(error))
            if reply.status == 200:
                return read_answer(probe, data, perf_counter() - begin)
            problem = f"status {reply.status}: {shortened(data)}"
            if reply.status == 400:
                self.reword(data)
                if self.body(probe) != sent:  # by us, or by a neighbour that was told the same
                    continue
            if reply.status not in BUSY:
                break
            if attempt + 1 < TRIES:
                await self.sleep(wait_of(reply, 2.0**attempt))
        return unanswered(probe, problem)

    def body(self, probe: Probe) -> bytes:
        messages = [{"role": "user", "content": probe.prompt}]
        return msgspec.json.encode(
            {"model": self.model, "messages": messages, self.limit_name: self.limit, **self.extras}
        )

    def reword(self, data: bytes) -> None:
        """Say it differently from now on: some servers refuse one of our settings by its name."""
        if b"max_completion_tokens" in data:
            self.limit_name = "max_completion_tokens"
        elif b"temperature" in data:
            self.extras.pop("temperature", None)


def wait_of(reply: Reply, otherwise: float) -> float:
    """Seconds until the next try: what the server asks for, within a minute."""
    asked = next((value for name, value in reply.headers if name == b"retry-after"), b"")
    return min(float(asked), 60.0) if asked.isdigit() else otherwise


def shortened(data: bytes) -> str:
    text = " ".join(data.decode("utf-8", "replace").split())
    return text if len(text) <= 200 else text[:200] + "..."


def unanswered(probe: Probe, problem: str) -> Answer:
    return Answer(
        id=probe.id, skill=probe.skill, level=probe.level, prompt=probe.prompt, expected=probe.answer, problem=problem
    )


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    timings: Timing | None = None


def read_answer(probe: Probe, data: bytes, latency_s: float) -> Answer:
    """The scored answer in a completion's body; a body that is none is no answer."""
    try:
        completion = msgspec.json.decode(data, type=_Completion)
        choice = completion.choices[0]
    except (msgspec.MsgspecError, IndexError):
        return unanswered(probe, f"expected a chat completion, got {shortened(data)}")
    text, cut = choice.message.content or "", choice.finish_reason == "length"
    if cut and not text.strip():
        return unanswered(probe, "expected text, got none within the limit of tokens (see --max-tokens)")
    usage = completion.usage or _Usage()
    return Answer(
        id=probe.id, skill=probe.skill, level=probe.level, prompt=probe.prompt, expected=probe.answer, reply=text,
        score=probe.score(text), cut=cut, latency_s=latency_s, prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens, timing=completion.timings,
    )  # fmt: skip


def speeds_of(answers: Sequence[Answer]) -> Speeds:
    """From the server's own timings where it gives them, else from a line through latency over completion tokens.

    The line needs answers of different lengths; where they are all short the speed stays unknown.
    """
    timed = [answer.timing for answer in answers if answer.timing is not None]
    known = [(a.completion_tokens, a.latency_s) for a in answers if a.completion_tokens and a.latency_s is not None]
    if timed:
        generate = rate(sum(t.predicted_n for t in timed), sum(t.predicted_ms for t in timed))
        prefill = rate(sum(t.prompt_n for t in timed), sum(t.prompt_ms for t in timed))
        first = float(np.median([t.prompt_ms for t in timed])) / 1e3
        return Speeds(generate, prefill, first, "the server's own timings")
    tokens, latency = np.array(known, dtype=float).reshape(-1, 2).T
    if len(tokens) < 8 or np.ptp(tokens) < 16:
        return Speeds(None, None, None, "no timings, and answers too short or too few to tell")
    slope, intercept = np.polyfit(tokens, latency, 1)
    if slope <= 0:
        return Speeds(None, None, float(np.median(latency)), "latency does not grow with length")
    return Speeds(float(1 / slope), None, max(0.0, float(intercept)), "a line through latency over tokens")


def rate(count: int, milliseconds: float) -> float | None:
    return 1e3 * count / milliseconds if count and milliseconds > 0 else None
