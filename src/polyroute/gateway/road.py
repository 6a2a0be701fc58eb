"""The road of one model request: accept, signals, decide, forward, settle. The design's table of budgets is its map."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from polyroute.errors import NoCandidateError, UnknownNameError, UpstreamError
from polyroute.gateway.answers import (
    ClientGoneError,
    Headers,
    Receive,
    Scope,
    Send,
    error_body,
    error_event,
    read_body,
    send_bytes,
)
from polyroute.gateway.brain import Choice, new_id, usd_of
from polyroute.gateway.records import OutcomeRecord
from polyroute.gateway.transport import Reply
from polyroute.gateway.wire import (
    BadRequestError,
    Stream,
    Usage,
    View,
    ask_for_usage,
    downstream_headers,
    given,
    one_line,
    read_seen,
    read_usage,
    read_view,
    replace_model,
    upstream_headers,
)

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway
    from polyroute.types import Candidate

RETRYABLE = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
SESSION_HEADERS = (b"x-session-id", b"x-conversation-id", b"x-claude-code-session-id")
KIND_STATUS = {"refused": 502, "cut": 502, "protocol": 502, "missing": 503, "busy": 503, "timeout": 504}
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
    headers: dict[bytes, bytes] = field(default_factory=dict)


async def travel(gateway: Gateway, scope: Scope, receive: Receive, send: Send, endpoint: str) -> None:
    """Serve one request on /v1/{chat/completions, completions, embeddings}."""
    started = perf_counter()
    headers = dict(scope["headers"])
    road = Exchange(endpoint, scope["path"], request_id(headers), started, headers=headers)
    try:
        tenant = gateway.tenant_of(headers)
        body = await read_body(receive, gateway.max_body)
        try:
            view = read_view(body)
        except msgspec.MsgspecError as error:
            raise BadRequestError(*explained(error)) from None
        gateway.telemetry.stage("accept", perf_counter() - started)
        road.choice = await decide(gateway, view, road, tenant)
    except ClientGoneError:
        return
    except BadRequestError as error:
        return await refuse(gateway, send, road, error.status, str(error), error.parameter, error.code)
    except UnknownNameError as error:
        return await refuse(gateway, send, road, 404, str(error), "model", "model_not_found")
    except NoCandidateError as error:
        status = 503 if "healthy" in error.refused.values() else 400
        return await refuse(gateway, send, road, status, str(error), "model", "no_candidate")
    gateway.journal.decision(road.choice.record)
    gateway.in_flight += 1
    me = asyncio.current_task()
    assert me is not None
    watch: asyncio.Task[Any] = asyncio.get_running_loop().create_task(receive())  # type: ignore[arg-type]  # a coroutine

    def left(_: Any) -> None:
        if not road.over and not watch.cancelled():
            road.gone = True
            me.cancel()

    watch.add_done_callback(left)
    try:
        await forward(gateway, scope["headers"], send, road, view, body)
    except asyncio.CancelledError:
        if not road.gone:
            raise
        me.uncancel()
        if road.stream is not None and (road.stream.done or road.stream.finished):
            road.state = "ok"  # the client had read the end marker and hung up before the backend did
        else:
            road.status, road.state = 499, "cancelled"
    finally:
        road.over = True
        watch.cancel()
        gateway.in_flight -= 1
        settle(gateway, road)


def request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own request id where it gives a sane one, else a new one."""
    own = headers.get(b"x-request-id", b"")
    if 0 < len(own) <= 128 and own.isascii():
        return own.decode()
    return new_id("req")


def explained(error: msgspec.MsgspecError) -> tuple[str, str | None]:
    """msgspec's message, and the field it names."""
    text = str(error)
    parameter = text.rsplit("`$.", 1)[-1].rstrip("`") if "`$." in text else None
    if "missing required field `model`" in text:
        parameter = "model"
    prefix = "" if isinstance(error, msgspec.ValidationError) else "The body is not valid JSON: "
    return prefix + text, parameter


async def decide(gateway: Gateway, view: View, road: Exchange, tenant: str | None) -> Choice:
    """Where this request goes: the model it names, or what the named policy chooses."""
    brain, requested, headers = gateway.brain, view.model, road.headers
    session = next((headers[h].decode("latin-1")[:128] for h in SESSION_HEADERS if h in headers), None)
    candidate = brain.by_id.get(requested)
    if candidate is not None:
        return brain.named(
            candidate, endpoint=road.endpoint, request_id=road.request_id, session=session, tenant=tenant
        )
    name = headers.get(b"x-polyroute-policy", b"").decode("latin-1") or requested
    policy = brain.policies.get(name)
    if policy is None:
        raise UnknownNameError("model", name, [*brain.policies, *brain.by_id])
    if road.endpoint == "embeddings":
        raise BadRequestError(
            f"{requested!r} is a virtual model, and vectors of different models do not mix: name a model.", "model"
        )
    start = perf_counter()
    signals = await brain.signals(view, road.endpoint)
    middle = perf_counter()
    choice = brain.choose(
        signals, policy, requested=requested, endpoint=road.endpoint, request_id=road.request_id,
        trade_off=trade_off_of(headers), session=session, tenant=tenant,
    )  # fmt: skip
    gateway.telemetry.stage("signals", middle - start)
    gateway.telemetry.stage("decide", perf_counter() - middle)
    return choice


def trade_off_of(headers: dict[bytes, bytes]) -> float | None:
    """The per-request override of the policy's trade-off, where the client sends one."""
    wanted = headers.get(b"x-polyroute-trade-off")
    if wanted is None:
        return None
    try:
        value = float(wanted)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise BadRequestError(f"x-polyroute-trade-off: expected a number of 0 or more, got {wanted[:40]!r}.")
    return value


async def forward(gateway: Gateway, sent: Headers, send: Send, road: Exchange, view: View, body: bytes) -> None:
    """Try the candidates in order until one answers; nothing is tried again after the first byte."""
    assert road.choice is not None
    streaming = bool(view.stream)
    client_usage = view.stream_options is not None and bool(view.stream_options.include_usage)
    hide_usage = streaming and not client_usage and road.endpoint != "embeddings"
    if hide_usage:
        body = ask_for_usage(body)
    headers = upstream_headers(sent)
    allowed = road.choice.ranked[: gateway.max_attempts]
    for candidate in allowed:
        road.candidate = candidate
        road.attempts += 1
        last = candidate is allowed[-1]
        backend = gateway.backends[candidate.id]
        road.path_taken = backend.path
        spliced = replace_model(body, gateway.upstream_names[candidate.id])
        waiting = perf_counter()
        try:
            reply = await backend.send(road.path, headers, spliced, gateway.timeouts)
        except UpstreamError as error:
            road.upstream_s += perf_counter() - waiting
            gateway.failed(candidate.id, error.kind)
            road.error = f"{candidate.id}: {error}"
            if last:
                return await broken(send, road, KIND_STATUS.get(error.kind, 502), road.error, f"upstream_{error.kind}")
            continue
        road.upstream_s += perf_counter() - waiting
        try:
            if reply.status in RETRYABLE:
                gateway.failed(candidate.id, str(reply.status), retry_after(reply.headers))
                if not last:
                    continue
            else:
                gateway.worked(candidate.id)
            return await relay(gateway, send, road, reply, hide_usage)
        finally:
            await reply.close()


def retry_after(headers: Headers) -> float | None:
    """Seconds the backend asks us to wait, where it says so in seconds."""
    for name, value in headers:
        if name == b"retry-after":
            return float(value) if value.isdigit() else None
    return None


async def relay(gateway: Gateway, send: Send, road: Exchange, reply: Reply, hide_usage: bool) -> None:
    """Pass the backend's answer to the client."""
    content_type = next((v for k, v in reply.headers if k == b"content-type"), b"")
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
    encoding = next((v for k, v in reply.headers if k == b"content-encoding"), b"identity")
    problem = note_answer(road, reply.status, plain(data, encoding))
    if problem is not None:
        return await broken(send, road, 502 if reply.status < 500 else reply.status, problem, "upstream_protocol")
    if gateway.answer_requested and road.choice is not None and reply.status < 400 and encoding == b"identity":
        data = replace_model(data, road.choice.record.requested)
    extra = decision_headers(road)
    if reply.status in RETRYABLE and road.attempts > 1:
        extra.append((b"x-should-retry", b"false"))
    head = [*downstream_headers(reply.headers), (b"content-length", b"%d" % len(data)), *extra]
    road.began, road.status = True, reply.status
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
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
    tail = rest if cut is None else error_event(f"The answer was cut short: {cut}.", "upstream_cut")
    road.over = True
    await send({"type": "http.response.body", "body": tail})


def renamed(events: bytes, name: str) -> bytes:
    """The same events with the model's name set to the one the client asked for."""
    parts = events.split(b"data: {")
    head = parts[0]
    return head + b"".join(b"data: " + rename_event(b"{" + part, name) for part in parts[1:])


def rename_event(event: bytes, name: str) -> bytes:
    """One event's JSON and what follows it, renamed; left alone where it is not complete JSON."""
    payload = event.rstrip()
    try:
        seen = read_seen(payload)
    except msgspec.MsgspecError:
        return event
    return event if seen.model is None else replace_model(payload, name) + event[len(payload) :]


def decision_headers(road: Exchange) -> Headers:
    """The small versioned set every routed answer carries; the whole record is one GET away."""
    assert road.choice is not None
    assert road.candidate is not None
    record = road.choice.record
    overhead = (perf_counter() - road.started - road.upstream_s) * 1e3
    reason = record.because if road.attempts == 1 else f"fallback after {road.error}"
    found = [
        (b"x-polyroute-schema", b"1"),
        (b"x-polyroute-request-id", one_line(road.request_id)),
        (b"x-polyroute-decision-id", record.id.encode()),
        (b"x-polyroute-requested-model", one_line(record.requested)),
        (b"x-polyroute-selected-model", one_line(road.candidate.id)),
        (b"x-polyroute-policy", one_line(record.policy)),
        (b"x-polyroute-reason", one_line(reason)),
        (b"x-polyroute-path", road.path_taken.encode()),
        (b"x-polyroute-attempts", b"%d" % road.attempts),
        (b"x-polyroute-overhead-ms", b"%.3f" % overhead),
    ]
    for candidate in record.candidates:
        if candidate.id == road.candidate.id and "cost" in candidate.mean:
            found.append((b"x-polyroute-estimated-cost-usd", b"%.9f" % candidate.mean["cost"]))
    if b"x-polyroute-debug" in road.headers:
        found.append((b"x-polyroute-candidates", one_line(msgspec.json.encode(record.candidates).decode())))
    return found


async def broken(send: Send, road: Exchange, status: int, message: str, code: str) -> None:
    """No usable answer: an error in the protocol's shape, and the SDK is told not to multiply our tries."""
    road.began, road.over, road.status, road.state = True, True, status, "error"
    road.error = message
    headers = [*decision_headers(road), (b"x-should-retry", b"false" if road.attempts > 1 else b"true")]
    await send_bytes(send, status, error_body(status, message, code=code), b"application/json", headers)


async def refuse(
    gateway: Gateway, send: Send, road: Exchange, status: int, message: str, parameter: str | None, code: str | None
) -> None:
    """The request is turned down before any decision."""
    gateway.telemetry.request(road.endpoint, "none", status, perf_counter() - road.started)
    headers = [(b"x-polyroute-schema", b"1"), (b"x-polyroute-request-id", one_line(road.request_id))]
    if status not in (408, 429, 503):
        headers.append((b"x-should-retry", b"false"))
    await send_bytes(send, status, error_body(status, message, parameter, code), b"application/json", headers)


def settle(gateway: Gateway, road: Exchange) -> None:
    """Account what happened: tokens, money, time, state. Nothing here waits."""
    begin = perf_counter()
    assert road.choice is not None
    record, candidate, stream = road.choice.record, road.candidate, road.stream
    if stream is not None:
        road.usage, road.raw_usage = stream.usage, stream.raw_usage
    total = begin - road.started
    usage, cost, dearest = road.usage, None, None
    if usage is not None and candidate is not None:
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        cost = usd_of(candidate, prompt, completion)
        dearest = gateway.brain.dearest_usd(prompt, completion)
        gateway.telemetry.tokens(candidate.id, prompt, completion)
        gateway.telemetry.spend(candidate.id, cost)
    if road.choice.policy is not None and road.choice.policy.settle is not None:
        road.choice.policy.settle(cost or 0.0)  # a budget's window counts requests, also those that failed
    selected = candidate.id if candidate is not None else record.selected
    gateway.journal.outcome(
        OutcomeRecord(
            decision_id=record.id, time=gateway.brain.clock(), status=road.status, state=road.state, selected=selected,
            attempts=road.attempts, latency_s=total, first_byte_s=road.first_byte_s,
            prompt_tokens=usage.prompt_tokens if usage else None, cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None, cost_usd=cost, dearest_usd=dearest,
            usage=road.raw_usage, error=road.error,
        )
    )  # fmt: skip
    if road.state == "ok":
        gateway.observed(selected, total, usage)
    gateway.telemetry.decision(record.policy, selected)
    gateway.telemetry.request(road.endpoint, selected, road.status, total)
    gateway.telemetry.overhead(max(0.0, total - road.upstream_s))
    gateway.telemetry.stage("settle", perf_counter() - begin)
