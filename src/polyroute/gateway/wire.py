"""Bytes on the wire: what a request says, splicing without reserialising, and watching a stream go by.

A body is passed on byte for byte except for the values spliced here. A stream is forwarded event by event; when the
gateway asked for usage on its own account, what that added is taken out again before the client sees it.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from polyroute.errors import PolyrouteError

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
STRUCTURE = re.compile(rb'["{}\[\],]')
MODEL = re.compile(rb'"model"\s*:\s*("[^"\\]*")')
NULL_USAGE = re.compile(rb'\s*,\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')
LONGEST_EVENT = 4 << 20
EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")


class BadRequestError(PolyrouteError, ValueError):
    """A request that cannot be read. parameter: the field at fault, or None."""

    def __init__(self, message: str, parameter: str | None = None, *, status: int = 400, code: str | None = None):
        self.parameter, self.status, self.code = parameter, status, code
        super().__init__(message)


NOTHING = msgspec.Raw(b"")  # the field is not there


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class View(msgspec.Struct):
    """The few fields of a request the gateway reads; the rest stays bytes."""

    model: str
    messages: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING  # of an embedding request
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: msgspec.Raw = NOTHING
    response_format: msgspec.Raw = NOTHING
    modalities: list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING

    @property
    def max_output(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


read_view = msgspec.json.Decoder(View).decode


def fields(body: bytes) -> dict[str, tuple[int, int, int]]:
    """Where each top-level field of a JSON object stands: name -> (key start, value start, value end).

    body: valid JSON, an object. A repeated name keeps its last place, as JSON readers do.
    """
    found: dict[str, tuple[int, int, int]] = {}
    depth, key, value_at, position = 0, None, 0, 0
    while (token := STRUCTURE.search(body, position)) is not None:
        at, mark = token.start(), token.group()
        position = at + 1
        if mark == b'"':
            position = STRING.match(body, at).end()  # type: ignore[union-attr]  # valid JSON closes its strings
            if depth == 1 and key is None:
                key = (msgspec.json.decode(body[at:position]), at)
                value_at = after_colon(body, position)
                position = value_at
        elif mark in b"{[":
            depth += 1
        elif mark == b",":
            if depth == 1 and key is not None:
                found[key[0]] = (key[1], value_at, trimmed(body, value_at, at))
                key = None
        else:
            depth -= 1
            if depth == 0:
                if key is not None:
                    found[key[0]] = (key[1], value_at, trimmed(body, value_at, at))
                break
    return found


def after_colon(body: bytes, position: int) -> int:
    """The start of the value behind a key that ends at `position`."""
    position = body.index(b":", position) + 1
    while body[position] in b" \t\r\n":
        position += 1
    return position


def trimmed(body: bytes, start: int, end: int) -> int:
    """`end` without the white space before it."""
    while end > start and body[end - 1] in b" \t\r\n":
        end -= 1
    return end


@lru_cache(maxsize=256)
def quoted(name: str) -> bytes:
    """A configured name, or one that was asked for, as JSON."""
    return msgspec.json.encode(name)


def replace_model(body: bytes, name: str) -> bytes:
    """The same JSON object with another top-level `model`; every other byte is kept."""
    value = quoted(name)
    if (
        body.count(b'"model"') == 1
        and (b"\\" not in body or b"\\u00" not in body)
        and (only := MODEL.search(body)) is not None
    ):
        start, end = only.span(1)
    else:
        _, start, end = fields(body)["model"]
    return body if body[start:end] == value else body[:start] + value + body[end:]


def ask_for_usage(body: bytes) -> bytes:
    """The same request with `stream_options.include_usage` true."""
    at = fields(body).get("stream_options") if b"stream_options" in body or b"\\u" in body else None
    if at is None:
        brace = body.index(b"{") + 1
        rest = body[brace:].lstrip()
        comma = b"" if rest.startswith(b"}") else b","
        return body[:brace] + b'"stream_options":{"include_usage":true}' + comma + body[brace:]
    _, start, end = at
    options = msgspec.json.decode(body[start:end])
    options = {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
    return body[:start] + msgspec.json.encode(options) + body[end:]


def drop_field(data: bytes, name: str) -> bytes:
    """The same JSON object without one top-level field."""
    at = fields(data).get(name)
    if at is None:
        return data
    start, _, end = at
    tail = data[end:].lstrip()
    if tail.startswith(b","):
        return data[:start] + tail[1:].lstrip()
    head = data[:start].rstrip()
    return (head[:-1] if head.endswith(b",") else head) + tail


class Usage(msgspec.Struct):
    """Token counts in OpenAI's dialect: prompt_tokens includes the cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, object] | None = None

    @property
    def cached_tokens(self) -> int | None:
        if self.prompt_tokens_details is None:
            return None
        count = self.prompt_tokens_details.get("cached_tokens")
        return count if isinstance(count, int) else None


class Seen(msgspec.Struct):
    """The part of an answer or a chunk that is accounted."""

    usage: msgspec.Raw = NOTHING
    choices: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING
    model: str | None = None


read_seen = msgspec.json.Decoder(Seen).decode


def given(raw: msgspec.Raw) -> bool:
    """The field is there and is not null."""
    return bytes(raw) not in (b"", b"null")


def read_usage(raw: msgspec.Raw) -> tuple[Usage | None, dict[str, object] | None]:
    """(typed counts, the object as sent), or (None, None) where there is none or it makes no sense."""
    if not bytes(raw):
        return None, None
    try:
        kept = msgspec.json.decode(raw)
        return (msgspec.convert(kept, Usage), kept) if isinstance(kept, dict) else (None, None)
    except msgspec.MsgspecError:
        return None, None


class Stream:
    """Watches a server-sent event stream go by: usage, its end, errors; and hides usage the client did not ask for.

    hide_usage: the gateway asked for usage by itself. Without it the bytes stay as they are. Only whole events are
    forwarded, so that a stream cut inside one can still end in a readable error.
    """

    def __init__(self, *, hide_usage: bool):
        self.hide_usage = hide_usage
        self.carry = b""
        self.usage: Usage | None = None
        self.raw_usage: dict[str, object] | None = None
        self.done = False  # `[DONE]` went by
        self.finished = False  # a finish reason went by
        self.failed = False  # the upstream sent an error event
        self.num_events = 0

    def feed(self, chunk: bytes) -> bytes:
        """The complete events up to here, to be forwarded at once; empty while an event is incomplete."""
        if not self.carry and chunk.endswith(b"\n\n") and chunk.find(b"\n\n") == len(chunk) - 2 and b"\r" not in chunk:
            return self.event(chunk)  # one event, as most servers write them
        text = self.carry + chunk if self.carry else chunk
        last = 0
        out = []
        for end in event_ends(text):
            out.append(self.event(text[last:end]))
            last = end
        if len(text) - last > LONGEST_EVENT:  # no event stream we know; let it pass as it is
            out.append(text[last:])
            last = len(text)
        self.carry = text[last:]
        return b"".join(out) if self.hide_usage else text[:last]

    def flush(self) -> bytes:
        """What is left when the upstream has ended: an event without its blank line."""
        rest, self.carry = self.carry, b""
        return self.event(rest) if rest else b""

    def event(self, event: bytes) -> bytes:
        """One complete event, noted and returned as the client should see it."""
        self.num_events += 1
        if b'"usage"' in event or b'"error"' in event:
            return self.accounted(event)
        if b"[DONE]" in event and event.lstrip().startswith((b"data: [DONE]", b"data:[DONE]")):
            self.done = True
        elif not self.finished and finish_given(event):
            self.finished = True
        return event

    def accounted(self, event: bytes) -> bytes:
        """An event that may carry usage or an error."""
        self.finished = self.finished or finish_given(event)
        if (
            event.startswith(b"data:")
            and event.count(b'"usage"') == event.count(b'"usage":null') == 1
            and (b'"error"' not in event)
        ):  # nothing to read: most events of a stream that will tell its usage
            return NULL_USAGE.sub(b"", event, count=1) if self.hide_usage else event
        head, found, payload = event.partition(b"data:")
        if not found or head.strip():
            return event
        payload, tail = payload.rstrip(), payload[len(payload.rstrip()) :]
        try:
            seen = read_seen(payload)
        except msgspec.MsgspecError:
            return event
        if given(seen.error):
            self.failed = True
        usage, raw = read_usage(seen.usage)
        if usage is not None:
            self.usage, self.raw_usage = usage, raw
        if not self.hide_usage:
            return event
        if usage is None:
            return NULL_USAGE.sub(b"", event, count=1)
        if not bytes(seen.choices).strip(b"[] \t\r\n"):
            return b""
        return head + found + b" " + drop_field(payload.lstrip(), "usage") + tail


def event_ends(text: bytes) -> list[int]:
    """Where each complete event of a stream ends, its blank line included."""
    if b"\r" in text:
        return [end.end() for end in EVENT_END.finditer(text)]
    ends = []
    at = text.find(b"\n\n")  # ten times as fast as the pattern, and nearly every stream is written so
    while at >= 0:
        ends.append(at + 2)
        at = text.find(b"\n\n", at + 2)
    return ends


FINISH = b'"finish_reason"'
A_STRING = re.compile(rb'\s*:\s*"')


def finish_given(event: bytes) -> bool:
    """Some choice of this event says why it ended."""
    at = event.find(FINISH)
    while at >= 0:
        at += len(FINISH)
        if not event.startswith(b":null", at) and A_STRING.match(event, at) is not None:
            return True
        at = event.find(FINISH, at)
    return False


HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
NOT_UPSTREAM = HOP_BY_HOP | frozenset(
    b"host content-length authorization x-api-key api-key cookie accept-encoding expect forwarded x-forwarded-for "
    b"x-forwarded-host x-forwarded-proto x-real-ip".split()
)
NOT_DOWNSTREAM = HOP_BY_HOP | frozenset((b"set-cookie", b"date", b"server", b"content-length"))


EACH_ITS_OWN = frozenset(b"content-length authorization x-api-key api-key cookie".split())  # none goes upstream


def upstream_headers(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """The client's headers that a backend may see: no credentials, no cookies, nothing that belongs to the hop.

    A client sends nearly the same headers each time, so that what became of them is remembered, here and where the
    head of the request upstream is made; credentials are taken out before.
    """
    return _for_upstream(tuple([pair for pair in headers if pair[0] not in EACH_ITS_OWN]))


@lru_cache(maxsize=64)
def _for_upstream(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    kept = [(k, v) for k, v in headers if k not in NOT_UPSTREAM and not k.startswith(b"x-polyroute-")]
    return (*kept, (b"accept-encoding", b"identity"))


def downstream_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The backend's headers that the client may see; the length is set again by whoever sends the body."""
    return [(k, v) for k, v in headers if k not in NOT_DOWNSTREAM and not k.startswith(b"x-polyroute-")]


def one_line(text: str) -> bytes:
    """A header's value: printable ASCII, cut at 4,000 characters, so that no value can end its line."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:4000].encode()
