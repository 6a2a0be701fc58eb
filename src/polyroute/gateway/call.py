"""One request and its answer between the front door and the application: ASGI's scope, `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools

from polyroute.gateway.answers import Message, error_body

if TYPE_CHECKING:
    from polyroute.gateway.front import Front

STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}
GONE: Message = {"type": "http.disconnect"}
BODILESS = (204, 304)
log = logging.getLogger("polyroute.gateway")


class Call:
    """One request and its answer, as ASGI sees them: a scope, `receive` and `send`."""

    __slots__ = (
        "answered", "began", "chunked", "front", "gone", "head", "keep_alive", "left", "parts", "scope", "size",
        "started", "taken", "waiter", "wanted", "whole",
    )  # fmt: skip

    def __init__(self, front: Front, method: str, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.front = front
        parsed = httptools.parse_url(url) if url[:1] != b"/" else None
        raw, _, query = url.partition(b"?") if parsed is None else (parsed.path or b"/", b"", parsed.query or b"")
        path = raw.decode("latin-1")
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": method, "scheme": "http", "path": unquote(path) if "%" in path else path, "raw_path": raw,
            "query_string": query, "root_path": "", "headers": headers, "server": front.server, "client": front.client,
            "extensions": {"polyroute.gone": self.when_gone},
        }  # fmt: skip
        self.keep_alive = True
        self.started = False  # its front has it served
        self.parts: list[bytes] = []
        self.size = 0
        self.whole = False  # the body has arrived
        self.wanted: int | None = None  # bytes of the answer still to come; None: not known
        self.taken = False  # the application has all of the body
        self.chunked = self.began = self.answered = self.gone = False
        self.head = b""  # of an answer, held back until its body is there
        self.waiter: asyncio.Future[None] | None = None
        self.left: Callable[[], None] | None = None

    async def run(self) -> None:
        try:
            await self.front.app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("a request failed")
        except asyncio.CancelledError:
            self.front.transport.abort()
            raise
        finally:
            self.left = None
            del self.scope["extensions"]  # which leads back here: without it a request is gone when it is over
        if self.answered or self.gone:
            return
        if self.began:
            log.error("an answer to %s was left incomplete", self.scope["path"])
            self.front.transport.abort()  # a client must not take it for a whole one
            return
        body = error_body(500, "The gateway failed; its log says why.")
        await self.send({"type": "http.response.start", "status": 500, "headers": [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})  # fmt: skip
        await self.send({"type": "http.response.body", "body": body})

    # the client's side

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the client leaves before the answer is complete; at once where it has left."""
        self.left = callback
        if self.gone:
            callback()

    def leave(self) -> None:
        if not self.answered:
            self.gone = True
            self.wake()
            if self.left is not None:
                self.left()

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # the application's side

    async def receive(self) -> Message:
        """The body as it arrives, then the client's leaving."""
        while not self.gone and not self.answered and (self.taken or not (self.parts or self.whole)):
            if not self.taken:
                self.expect()
            self.waiter = self.front.loop.create_future()
            await self.waiter
        if self.gone or self.answered:
            return GONE
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts, self.size, self.taken = [], 0, self.whole
        self.front.resume_reading()
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    def expect(self) -> None:
        """Ask for the body where the client waits to be asked."""
        headers = self.scope["headers"]
        for i, (name, value) in enumerate(headers):
            if name == b"expect" and value.lower() == b"100-continue":
                del headers[i]
                self.front.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                break
        self.front.resume_reading()

    async def send(self, message: Message) -> None:
        """The answer: its start, then its body. Nothing is written to a client that has left."""
        front = self.front
        if front.drained is not None:
            await front.drained
        if self.gone:
            return
        if message["type"] == "http.response.start":
            head = self.head_of(message["status"], message["headers"])
            if self.chunked:
                front.transport.write(head)
            else:
                self.head = head
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.wanted is not None:
            self.wanted -= len(body)
            if self.wanted < 0 or (not more and self.wanted):
                raise RuntimeError(f"expected a body of its content-length, got {-self.wanted} bytes more")
        if self.scope["method"] == "HEAD":
            out = b""
        elif self.chunked:
            out = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                out += b"0\r\n\r\n"
        else:
            out = body
        if self.head:
            out, self.head = self.head + out, b""
        if out:
            front.transport.write(out)
        if not more:
            self.answered = True
            self.wake()
            front.finished(self)

    def head_of(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Status line and headers. Raises: RuntimeError where a header would end its line."""
        if self.began:
            raise RuntimeError("expected one http.response.start, got two")
        if self.scope["method"] != "HEAD":
            length = next((value for name, value in headers if name == b"content-length"), None)
            self.wanted = None if length is None else int(length)
            # A client of HTTP/1.0 reads until the connection ends.
            self.chunked = length is None and status not in BODILESS and self.scope["http_version"] != "1.0"
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        lines += map(b": ".join, self.front.state.default_headers)
        lines += map(b": ".join, headers)
        if self.chunked:
            lines.append(b"transfer-encoding: chunked")
        if not self.keep_alive or not self.whole:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if head.count(b"\n") != len(lines) + 1:
            raise RuntimeError("expected headers of one line each")
        self.began = True
        return head
