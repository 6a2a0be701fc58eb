"""The road of one model request: accept, signals, decide, forward, settle. The design's table of budgets is its map."""

from __future__ import annotations

import asyncio
import math
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from polyroute.errors import NoCandidateError, UnknownNameError, UpstreamError
from polyroute.gateway.answers import (
    ClientGoneError,
    Headers,
    Receive,
    Scope,
    Send,
    error_body,
    read_body,
    send_bytes,
)
from polyroute.gateway.asked import Asked
from polyroute.gateway.choice import Choice, ServedPolicy, new_id, usd_of
from polyroute.gateway.headers import one_line, upstream_headers, upstream_query
from polyroute.gateway.reading import ask_and_read, together
from polyroute.gateway.records import OutcomeRecord
from polyroute.gateway.relay import KIND_STATUS, RETRYABLE, Exchange, broken, relay
from polyroute.gateway.screening import screen
from polyroute.gateway.wire import BadRequestError, View, ask_for_usage, given, read_view, replace_model

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway
    from polyroute.gateway.brain import Brain

SESSION_HEADERS = (b"x-session-id", b"x-conversation-id", b"x-claude-code-session-id")


async def travel(gateway: Gateway, scope: Scope, receive: Receive, send: Send, endpoint: str) -> None:
    """Serve one request on /v1/{chat/completions, completions, embeddings}."""
    started = perf_counter()
    headers = dict(scope["headers"])
    path = scope["path"] + upstream_query(scope["query_string"]) if scope["query_string"] else scope["path"]
    road = Exchange(endpoint, path, request_id(headers), started, headers=headers)
    try:
        view, body = await accept(gateway, road, receive)
    except ClientGoneError:
        return
    except BadRequestError as error:
        return await refuse(gateway, send, road, error)
    assert road.choice is not None
    gateway.journal.decision(road.choice.record)
    gateway.in_flight += 1
    me = asyncio.current_task()
    assert me is not None

    def left() -> None:
        if not road.over:
            road.gone = True
            me.cancel()

    when_gone = scope.get("extensions", {}).get("polyroute.gone")
    if when_gone is not None:  # under another ASGI server a backend works on for a client that has left
        when_gone(left)
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
        gateway.in_flight -= 1
        settle(gateway, road)


async def accept(gateway: Gateway, road: Exchange, receive: Receive) -> tuple[View, bytes]:
    """Read the request and decide it: (its fields, its bytes), the choice on the road.

    Raises: ClientGoneError; BadRequestError for whatever keeps it from being served.
    """
    tenant = gateway.tenant_of(road.headers)
    if (coding := road.headers.get(b"content-encoding", b"identity").lower()) not in (b"identity", b""):
        got = coding[:40].decode("latin-1")
        raise BadRequestError(f"content-encoding: expected a body as it is, got one in {got!r}.", status=415)
    body = await read_body(receive, gateway.max_body)
    try:
        view = read_view(body)
        gateway.telemetry.stage("accept", perf_counter() - road.started)
        road.choice = await decide(gateway, view, road, tenant)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequestError(*explained(error)) from None
    except UnknownNameError as error:
        raise BadRequestError(str(error), "model", status=404, code="model_not_found") from None
    except NoCandidateError as error:
        status = 503 if "healthy" in error.refused.values() else 400
        raise BadRequestError(str(error), "model", status=status, code="no_candidate") from None
    return view, body


def request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own request id where it gives a sane one, else a new one."""
    own = headers.get(b"x-request-id", b"")
    if 0 < len(own) <= 128 and own.isascii():
        return own.decode()
    return new_id("req")


def explained(error: msgspec.MsgspecError | RecursionError) -> tuple[str, str | None]:
    """What is wrong with the JSON of a body, and the field at fault where one is named."""
    if isinstance(error, RecursionError):
        return "The body is nested too deeply to be read; send a flatter one.", None
    text = str(error)
    parameter = text.rsplit("`$.", 1)[-1].rstrip("`") if "`$." in text else None
    if "missing required field `model`" in text:
        parameter = "model"
    prefix = "" if isinstance(error, msgspec.ValidationError) else "The body is not valid JSON: "
    return prefix + text, parameter


async def decide(gateway: Gateway, view: View, road: Exchange, tenant: str | None) -> Choice:
    """Where this request goes: the model it names, or what the named policy chooses."""
    brain, requested, headers = gateway.brain, view.model, road.headers
    session = session_of(headers)
    candidate = brain.by_id.get(requested)
    verdict = await screen(gateway, view)
    if candidate is not None:
        return brain.named(
            candidate, endpoint=road.endpoint, request_id=road.request_id, session=session, tenant=tenant,
            verdict=verdict,
        )  # fmt: skip
    policy = policy_of(brain, headers, requested)
    if road.endpoint == "embeddings":
        raise BadRequestError(
            f"{requested!r} is a virtual model, and vectors of different models do not mix: name a model.", "model"
        )
    asked = Asked(
        view, policy, requested, road.endpoint, road.request_id, trade_off_of(headers), session, tenant, verdict,
        readable=road.endpoint == "chat.completions" and not view.stream and not given(view.tools),
    )  # fmt: skip
    choice = await brain.decide(asked, company=gateway.in_flight > 0)  # a request alone is not kept for a round
    gateway.telemetry.stage("signals", choice.took[0])
    gateway.telemetry.stage("decide", choice.took[1])
    return choice


def policy_of(brain: Brain, headers: dict[bytes, bytes], requested: str) -> ServedPolicy:
    """The policy a header names, else the one that is named as the model.

    Raises: BadRequestError for an unknown header; UnknownNameError for a model that nobody knows.
    """
    named = headers.get(b"x-polyroute-policy", b"").decode("latin-1")
    policy = brain.policies.get(named or requested)
    if policy is not None:
        return policy
    if named:
        raise BadRequestError(f"x-polyroute-policy: {UnknownNameError('policy', named, brain.policies)}")
    raise UnknownNameError("model", requested, [*brain.policies, *brain.by_id])


def session_of(headers: dict[bytes, bytes]) -> str | None:
    """The conversation the client says this request belongs to, cut at 128 characters."""
    for name in SESSION_HEADERS:
        if name in headers:
            return headers[name].decode("latin-1")[:128]
    return None


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
        got = wanted[:40].decode("latin-1")
        raise BadRequestError(f"x-polyroute-trade-off: expected a number of 0 or more, got {got!r}.")
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
    if road.choice.judge is not None:
        return await ask_and_read(gateway, send, road, road.choice.judge, headers, body)
    allowed = road.choice.ranked[: gateway.max_attempts]
    for candidate in allowed:
        road.candidate = candidate
        road.attempts += 1
        last = candidate is allowed[-1]
        backend = gateway.backends[candidate.id]
        road.path_taken = backend.path
        name = gateway.upstream_names[candidate.id]
        spliced = body if name == view.model else replace_model(body, name)
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


async def refuse(gateway: Gateway, send: Send, road: Exchange, error: BadRequestError) -> None:
    """The request is turned down before any decision."""
    status = error.status
    gateway.telemetry.request(road.endpoint, "none", status, perf_counter() - road.started)
    headers = [(b"x-polyroute-schema", b"1"), (b"x-polyroute-request-id", one_line(road.request_id))]
    if status not in (408, 429, 503):
        headers.append((b"x-should-retry", b"false"))
    if error.code == "no_candidate" and status == 503 and (wait_s := gateway.brain.rest_s()) is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(wait_s)))
    await send_bytes(
        send, status, error_body(status, str(error), error.parameter, error.code), b"application/json", headers
    )


def settle(gateway: Gateway, road: Exchange) -> None:
    """Account what happened: tokens, money, time, state. Nothing here waits."""
    begin = perf_counter()
    assert road.choice is not None
    record, candidate, stream = road.choice.record, road.candidate, road.stream
    if stream is not None:
        road.usage, road.raw_usage = stream.usage, stream.raw_usage
    total = begin - road.started
    usage, cost, dearest, prompt, completion = road.usage, None, None, 0, 0
    if usage is not None and candidate is not None:
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        cost = usd_of(candidate, prompt, completion)
        dearest = gateway.brain.dearest_usd(prompt, completion)
    if road.tries:  # every answer that was read was paid
        cost, prompt, completion = together(road.tries)
    if road.choice.policy is not None and road.choice.policy.settle is not None:
        road.choice.policy.settle(cost or 0.0)  # a budget's window counts requests, also those that failed
    selected, now = candidate.id if candidate is not None else record.selected, gateway.brain.clock()
    gateway.journal.outcome(
        OutcomeRecord(
            decision_id=record.id, time=now, status=road.status, state=road.state, selected=selected,
            attempts=road.attempts, latency_s=total, first_byte_s=road.first_byte_s,
            prompt_tokens=prompt if road.tries else usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=completion if road.tries else usage.completion_tokens if usage else None,
            cost_usd=cost, dearest_usd=dearest, usage=road.raw_usage, error=road.error, tries=road.tries,
        )
    )  # fmt: skip
    if road.state == "ok":
        if not road.tries:
            gateway.observed(selected, total, usage)
        if candidate is not None:
            gateway.brain.conversations.served(road.choice.thread, candidate, now, prompt + completion)
    for paid in road.tries:
        gateway.telemetry.used(paid.model, paid.prompt_tokens, paid.completion_tokens, paid.cost_usd)
    own = (0, 0, 0.0) if road.tries else (prompt, completion, cost or 0.0)
    gateway.telemetry.settled(
        road.endpoint, record.policy, selected, road.status, total, max(0.0, total - road.upstream_s), *own
    )
    gateway.telemetry.stage("settle", perf_counter() - begin)
