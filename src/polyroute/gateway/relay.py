"""What goes back to the client: a backend's answer, whole or as a stream, with the headers that say who chose it."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from polyroute.errors import UpstreamError
from polyroute.gateway.answers import Headers, Send, error_body, error_event, send_bytes
from polyroute.gateway.choice import Choice
from polyroute.gateway.events import Stream
from polyroute.gateway.headers import downstream_headers, one_line
from polyroute.gateway.records import Try
from polyroute.gateway.transport import Reply
from polyroute.gateway.wire import Usage, given, read_seen, read_usage, replace_model

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway
    from polyroute.types import Candidate

RETRYABLE = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
KIND_STATUS = {"refused": 502, "cut": 502, "protocol": 502, "missing": 503, "busy": 503, "timeout": 504}
DATA_LINE = re.compile(rb"^(data:[ \t]*)(\{[^\r\n]*)", re.MULTILINE)
STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


@dataclass(slots=True)
class Exchange:
    """What is known so far of one request; `settle` reads it whatever happened."""

    endpoint: str
    path: str
    request_id: str
    started: float
    choice: Choice | None = None
    candidate: Candidate | None = None
    attempts: int = 0
    status: int = 500
    state: str = "error"
    error: str | None = None
    began: bool = False  # the answer's first byte is on its way to the client
    over: bool = False  # nothing more will be sent
    gone: bool = False  # the client left
    upstream_s: float = 0.0  # time spent waiting for the backend
    first_byte_s: float | None = None
    usage: Usage | None = None
    raw_usage: dict[str, object] | None = None
    stream: Stream | None = None
    path_taken: str = "upstream"  # or replay: a recording answered, not a model
    kept: str = ""  # why this of several answers was given
    tries: list[Try] = field(default_factory=list)  # all that were paid for, where answers are read
    headers: dict[bytes, bytes] = field(default_factory=dict)


async def relay(gateway: Gateway, send: Send, road: Exchange, reply: Reply, hide_usage: bool) -> None:
    """Pass the backend's answer to the client."""
    content_type = dict(reply.headers).get(b"content-type", b"")
    if reply.status < 400 and content_type.startswith(b"text/event-stream"):
        return await relay_stream(gateway, send, road, reply, hide_usage)
    waiting = perf_counter()
    try:
        data = await reply.read()
    except UpstreamError as error:
        gateway.failed(road.candidate.id if road.candidate else "", error.kind)
        return await broken(send, road, KIND_STATUS.get(error.kind, 502), str(error), f"upstream_{error.kind}")
    finally:
        road.upstream_s += perf_counter() - waiting
        road.first_byte_s = perf_counter() - road.started
    await deliver(gateway, send, road, reply.status, reply.headers, data)


async def deliver(gateway: Gateway, send: Send, road: Exchange, status: int, headers: Headers, data: bytes) -> None:
    """Send a whole answer on, accounted."""
    encoding = dict(headers).get(b"content-encoding", b"identity")
    problem = note_answer(road, status, plain(data, encoding))
    if problem is not None:
        return await broken(send, road, 502 if status < 500 else status, problem, "upstream_protocol")
    if gateway.answer_requested and road.choice is not None and status < 400 and encoding == b"identity":
        data = replace_model(data, road.choice.record.requested)
    extra = decision_headers(road)
    if status in RETRYABLE and road.attempts > 1:
        extra.append((b"x-should-retry", b"false"))
    head = [*downstream_headers(headers), (b"content-length", b"%d" % len(data)), *extra]
    road.began, road.status = True, status
    await send({"type": "http.response.start", "status": status, "headers": head})
    road.over = True
    await send({"type": "http.response.body", "body": data})


def plain(data: bytes, encoding: bytes) -> bytes:
    """The answer as the accountant reads it; an encoding we did not ask for and cannot read gives no bytes."""
    if encoding == b"identity":
        return data
    try:
        return zlib.decompress(data, wbits=47) if encoding in (b"gzip", b"deflate") else b""
    except zlib.error:
        return b""


def note_answer(road: Exchange, status: int, data: bytes) -> str | None:
    """Read usage and errors out of a whole answer. Returns what is wrong where it is no JSON object at all."""
    try:
        seen = read_seen(data)
    except msgspec.MsgspecError:
        road.error = f"answered {status} with something that is not a JSON object"
        name = road.candidate.id if road.candidate else "the backend"
        return f"{name}: expected a JSON object, got {len(data)} bytes of something else (status {status})."
    road.usage, road.raw_usage = read_usage(seen.usage)
    failed = status >= 400 or given(seen.error)
    road.state = "error" if failed else "ok"
    if failed:
        road.error = f"upstream status {status}"
    return None


async def relay_stream(gateway: Gateway, send: Send, road: Exchange, reply: Reply, hide_usage: bool) -> None:
    """Forward events as they come; a stream that is cut says so."""
    stream = road.stream = Stream(hide_usage=hide_usage)
    kept = [(k, v) for k, v in downstream_headers(reply.headers) if k not in (b"cache-control", b"x-accel-buffering")]
    head = [*kept, *STREAM_HEADERS, *decision_headers(road)]
    road.began, road.status = True, reply.status
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
    rename = road.choice.record.requested if gateway.answer_requested and road.choice is not None else None
    waiting = perf_counter()
    cut = None
    try:
        async for chunk in reply.chunks():
            now = perf_counter()
            road.upstream_s += now - waiting
            if road.first_byte_s is None:
                road.first_byte_s = now - road.started
            out = stream.feed(chunk)
            if out:
                if rename is not None:
                    out = renamed(out, rename)
                await send({"type": "http.response.body", "body": out, "more_body": True})
            waiting = perf_counter()
    except UpstreamError as error:
        cut = str(error)
        gateway.failed(road.candidate.id if road.candidate else "", error.kind)
    rest = stream.flush()
    if cut is None and not (stream.done or stream.finished or stream.failed):
        cut = "the stream ended before its finish reason and end marker"
    road.state = "cut" if cut is not None else "error" if stream.failed else "ok"
    road.error = cut
    if rename is not None:
        rest = renamed(rest, rename)
    tail = rest if cut is None else error_event(f"The answer was cut short: {cut.rstrip('.')}.", "upstream_cut")
    road.over = True
    await send({"type": "http.response.body", "body": tail})


def renamed(events: bytes, name: str) -> bytes:
    """The same events with the model's name set to the one the client asked for."""
    return DATA_LINE.sub(lambda found: found[1] + rename_event(found[2], name), events)


def rename_event(payload: bytes, name: str) -> bytes:
    """One event's JSON, renamed; left alone where it is not complete JSON."""
    try:
        seen = read_seen(payload)
    except msgspec.MsgspecError:
        return payload
    return payload if seen.model is None else replace_model(payload, name)


def decision_headers(road: Exchange) -> Headers:
    """The small versioned set every routed answer carries; the whole record is one GET away."""
    assert road.choice is not None
    assert road.candidate is not None
    record = road.choice.record
    overhead = (perf_counter() - road.started - road.upstream_s) * 1e3
    reason = road.kept or (record.because if road.attempts == 1 else f"fallback after {road.error}")
    found = [
        *names_told(record.requested, road.candidate.id, record.policy, road.path_taken),
        (b"x-polyroute-request-id", one_line(road.request_id)),
        (b"x-polyroute-decision-id", record.id.encode()),
        (b"x-polyroute-reason", one_line(reason)),
        (b"x-polyroute-attempts", b"%d" % road.attempts),
        (b"x-polyroute-overhead-ms", b"%.3f" % overhead),
    ]
    if record.guards:
        found.append((b"x-polyroute-guards", one_line(", ".join(record.guards))))
    for candidate in record.candidates:
        if candidate.id == road.candidate.id and "cost" in candidate.mean:
            found.append((b"x-polyroute-estimated-cost-usd", b"%.9f" % candidate.mean["cost"]))
    if b"x-polyroute-debug" in road.headers:
        found.append((b"x-polyroute-candidates", one_line(msgspec.json.encode(record.candidates).decode())))
    return found


@lru_cache(maxsize=256)
def names_told(requested: str, selected: str, policy: str, path: str) -> Headers:
    """The headers that only configured names are in."""
    return [
        (b"x-polyroute-schema", b"1"),
        (b"x-polyroute-requested-model", one_line(requested)),
        (b"x-polyroute-selected-model", one_line(selected)),
        (b"x-polyroute-policy", one_line(policy)),
        (b"x-polyroute-path", path.encode()),
    ]


async def broken(send: Send, road: Exchange, status: int, message: str, code: str) -> None:
    """No usable answer: an error in the protocol's shape, and the SDK is told not to multiply our tries."""
    road.began, road.over, road.status, road.state = True, True, status, "error"
    road.error = message
    headers = [*decision_headers(road), (b"x-should-retry", b"false" if road.attempts > 1 else b"true")]
    await send_bytes(send, status, error_body(status, message, code=code), b"application/json", headers)
