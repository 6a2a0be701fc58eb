"""The front door: HTTP/1.1 from clients, ASGI to the application, on asyncio or uvloop under uvicorn's server.

uvicorn listens, handles signals and drains; this protocol takes the place of its own, which costs more per request
than the whole decision. What it leaves out: WebSockets, access logs, concurrency limits. What it adds: a request that
is complete when it arrives is handed over in one piece, a whole answer leaves in one write, one lazy timer a
connection, and `scope["extensions"]["polyroute.gone"]`, which calls back when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools

from polyroute.gateway.answers import Message, error_body

MAX_HEAD = 64 * 1024  # bytes of request line and headers
HIGH_WATER = 64 * 1024  # bytes of a body waiting for the application above which the socket is not read
LINGER_S = 1.0  # how long the rest of a body is read after an answer that did not wait for it
STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
GONE: Message = {"type": "http.disconnect"}
BODILESS = (204, 304)
log = logging.getLogger("polyroute.gateway")


class Front(asyncio.Protocol):
    """One client's connection; made and told to shut down by uvicorn. Pipelined requests wait for their turn.

    The parser calls back: on_message_begin, on_url, on_header, on_headers_complete, on_body, on_message_complete.
    """

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self.app = config.loaded_app
        self.state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self.patience_s: float = config.timeout_keep_alive
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.parser: Any = None
        self.server: Any = None
        self.client: Any = None
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.call: Call | None = None  # the one being served
        self.reading: Call | None = None  # the one whose body is arriving
        self.waiting: deque[Call] = deque()
        self.in_head = 0  # bytes of a head that is not complete yet
        self.quiet_since = 0.0  # when the last byte came or the last answer was complete
        self.timer: asyncio.TimerHandle | None = None
        self.drained: asyncio.Future[None] | None = None  # pending while the client reads too slowly
        self.read_paused = False
        self.last = False  # no request after the ones taken

    # the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.server = transport.get_extra_info("sockname")
        self.client = transport.get_extra_info("peername")
        self.state.connections.add(self)
        self.quiet_since = self.loop.time()
        self.timer = self.loop.call_later(self.patience_s, self.look)

    def connection_lost(self, error: Exception | None) -> None:
        self.state.connections.discard(self)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.resume_writing()
        for call in (self.call, *self.waiting):
            if call is not None:
                call.leave()
        if self.call is not None and self.call.task is not None:  # it has things to settle
            self.state.tasks.add(self.call.task)
            self.call.task.add_done_callback(self.state.tasks.discard)
        self.waiting.clear()
        self.parser = None

    def eof_received(self) -> None:
        return None  # close our side too

    def data_received(self, data: bytes) -> None:
        if self.last and self.reading is None:
            return
        self.quiet_since = self.loop.time()
        self.in_head += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # not taken: the request is answered as HTTP/1.1, and is the last
            self.last = True
            for call in (self.call, *self.waiting):
                if call is not None:
                    call.keep_alive = False
        except httptools.HttpParserError as error:
            return self.refuse(400, f"The request is not valid HTTP/1.1: {error}.")
        if self.in_head > MAX_HEAD and self.reading is None:
            return self.refuse(431, f"The request's headers are larger than {MAX_HEAD} bytes.")
        call = self.call
        if call is not None and call.task is None:
            call.start()

    def pause_writing(self) -> None:
        if self.drained is None:
            self.drained = self.loop.create_future()

    def resume_writing(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # the parser's side

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        call = self.reading = Call(self, self.parser.get_method().decode("ascii"), self.url, self.headers)
        version = self.parser.get_http_version()
        call.scope["http_version"] = version
        call.keep_alive = version != "1.0" and self.parser.should_keep_alive()
        self.in_head = 0
        if self.call is None:
            self.call = call
        else:
            self.waiting.append(call)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        self.in_head = 0
        call = self.reading
        if call is not None and not call.answered:
            call.parts.append(data)
            call.size += len(data)
            if call.size > HIGH_WATER and call.task is not None:
                self.pause_reading()
            call.wake()

    def on_message_complete(self) -> None:
        call, self.reading = self.reading, None
        self.in_head = 0
        if call is not None:
            call.whole = True
            call.wake()
            if call.answered:  # the rest of a body that was turned down
                self.transport.close()

    # what follows

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not self.waiting and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def finished(self, call: Call) -> None:
        """An answer is complete: take up the next request, or rest."""
        self.quiet_since = self.loop.time()
        if not call.whole:  # a client that is still sending reads the answer only if the socket is not shut on it
            self.loop.call_later(LINGER_S, self.transport.close)
            self.resume_reading()
        elif not call.keep_alive:
            self.transport.close()
        else:
            self.call = self.waiting.popleft() if self.waiting else None
            if self.call is not None:
                self.call.start()
            self.resume_reading()

    def refuse(self, status: int, message: str) -> None:
        """Answer what is no request, unless an answer is under way, and hang up."""
        if self.call is None or (self.call.task is None and not self.waiting):
            body = error_body(status, message)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINES[status] + head + body)
        self.last = True
        self.transport.close()

    def look(self) -> None:
        """Close a connection that has been quiet for too long with nothing to wait for; look again later."""
        self.timer = None
        if self.transport.is_closing():
            return
        left = self.patience_s - (self.loop.time() - self.quiet_since)
        waits = self.call is None or not (self.call.whole or self.read_paused)  # for the client, not for us
        if left <= 0.001 and waits:
            self.transport.close()
            return
        self.timer = self.loop.call_later(left if left > 0.001 else self.patience_s, self.look)

    def shutdown(self) -> None:
        """The server stops: finish what is being served, then hang up."""
        self.last = True
        if self.call is None:
            self.transport.close()
        else:
            self.call.keep_alive = False


class Call:
    """One request and its answer, as ASGI sees them: a scope, `receive` and `send`."""

    __slots__ = (
        "answered", "began", "chunked", "front", "gone", "head", "keep_alive", "left", "parts", "scope", "size", "taken", "task",
        "waiter", "wanted", "whole",
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
        self.task: asyncio.Task[None] | None = None
        self.parts: list[bytes] = []
        self.size = 0
        self.whole = False  # the body has arrived
        self.wanted: int | None = None  # bytes of the answer still to come; None: not known
        self.taken = False  # the application has all of the body
        self.chunked = self.began = self.answered = self.gone = False
        self.head = b""  # of an answer, held back until its body is there
        self.waiter: asyncio.Future[None] | None = None
        self.left: Callable[[], None] | None = None

    def start(self) -> None:
        self.task = self.front.loop.create_task(self.run())

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
        self.began = True
        length = next((value for name, value in headers if name == b"content-length"), None)
        pairs = [*self.front.state.default_headers, *headers]
        if self.scope["method"] != "HEAD":
            self.wanted = None if length is None else int(length)
            # A client of HTTP/1.0 reads until the connection ends.
            self.chunked = length is None and status not in BODILESS and self.scope["http_version"] != "1.0"
        if self.chunked:
            pairs.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive or not self.whole:
            pairs.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % pair for pair in pairs]
        head = (STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + b"".join(lines) + b"\r\n"
        if head.count(b"\n") != len(lines) + 2:
            raise RuntimeError("expected headers of one line each")
        return head
