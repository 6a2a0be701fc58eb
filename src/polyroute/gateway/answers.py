"""Sending answers over ASGI: JSON, errors in OpenAI's shape, and reading a body with a limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from polyroute.gateway.wire import BadRequestError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 415: "invalid_request_error",
    422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


def error_body(status: int, message: str, parameter: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error object: exactly message, type, param and code."""
    kind = ERROR_TYPES.get(status, "api_error")
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": parameter, "code": code}})


def error_event(message: str, code: str) -> bytes:
    """A stream that broke says so in an event both SDKs raise on; no end marker follows it."""
    return b"data: " + error_body(502, message, code=code) + b"\n\n"


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises: BadRequestError, 413 past `limit` bytes and 400 for what is not UTF-8, as JSON is; ClientGoneError when the
    client leaves.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BadRequestError(
                f"The request body is larger than {limit} bytes; send less or raise server.max_body_mb.",
                status=413, code="body_too_large",
            )  # fmt: skip
        parts.append(chunk)
        if not message.get("more_body", False):
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            return body if body.isascii() else legible(body)


def legible(body: bytes) -> bytes:
    """The same bytes. Raises: BadRequestError where they are not UTF-8."""
    try:
        body.decode()
    except UnicodeDecodeError as problem:
        at = f"byte 0x{body[problem.start]:02x} at position {problem.start}"
        raise BadRequestError(f"The body is not UTF-8: {at}. Encode it as UTF-8.") from None
    return body


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers | None = None) -> None:
    """One answer with its length."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    """One JSON answer."""
    await send_bytes(send, status, msgspec.json.encode(value), b"application/json", headers)


async def send_error(
    send: Send,
    status: int,
    message: str,
    parameter: str | None = None,
    code: str | None = None,
    headers: Headers | None = None,
) -> None:
    """One error in the protocol's shape."""
    await send_bytes(send, status, error_body(status, message, parameter, code), b"application/json", headers)
