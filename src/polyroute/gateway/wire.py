"""Bodies on the wire: what a request and an answer say, and splicing without reserialising.

A body is passed on byte for byte except for the values spliced here.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from polyroute.errors import PolyrouteError

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
STRUCTURE = re.compile(rb'["{}\[\],]')
MODEL = re.compile(rb'"model"\s*:\s*("[^"\\]*")')


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
    max_tokens: int | float | None = None  # 64.0 from clients whose language has one kind of number
    max_completion_tokens: int | float | None = None
    user: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING

    @property
    def max_output(self) -> int | None:
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return None if limit is None else int(limit)


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
