"""The front door: HTTP/1.1 from clients, ASGI to the application, on asyncio or uvloop under uvicorn's server.

uvicorn listens, handles signals and drains; this protocol takes the place of its own, which costs more per request
than the whole decision. What it leaves out: WebSockets, access logs, concurrency limits. What it adds: a request that
is complete when it arrives is handed over in one piece, a whole answer leaves in one write, one lazy timer a
connection, and `scope["extensions"]["polyroute.gone"]`, which calls back when the client leaves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import httptools

from polyroute.gateway.answers import error_body
from polyroute.gateway.call import STATUS_LINES, Call

MAX_HEAD = 64 * 1024  # bytes of request line and headers
HIGH_WATER = 64 * 1024  # bytes of a body waiting for the application above which the socket is not read
LINGER_S = 1.0  # how long the rest of a body is read after an answer that did not wait for it
OFFERS = frozenset((b"connection", b"upgrade", b"http2-settings"))


class Front(asyncio.Protocol):
    """One client's connection; made and told to shut down by uvicorn. Pipelined requests wait for their turn.

    The parser calls back: on_message_begin, on_url, on_header, on_headers_complete, on_body, on_message_complete.
    """

    __slots__ = (
        "app", "call", "client", "drained", "headers", "in_head", "last", "loop", "parser", "patience_s", "quiet_since",
        "read_paused", "reading", "rest", "server", "state", "task", "timer", "transport", "url", "waiting",
    )  # fmt: skip

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
        self.task: asyncio.Task[None] | None = None  # serves one call after another, until the client leaves
        self.rest: asyncio.Future[None] | None = None  # pending while that task has nothing to do
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
        if self.task is not None and self.rest is None:  # it has things to settle
            self.state.tasks.add(self.task)
            self.task.add_done_callback(self.state.tasks.discard)
        self.waiting.clear()
        self.parser = None
        self.wake()

    def eof_received(self) -> None:
        return None  # close our side too

    def data_received(self, data: bytes) -> None:
        if self.last and self.reading is None:
            return
        self.quiet_since = self.loop.time()
        self.in_head += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            return self.read_on(data[stop.args[0] :])
        except httptools.HttpParserError as error:
            return self.refuse(400, f"The request is not valid HTTP/1.1: {error}.")
        if self.in_head > MAX_HEAD and self.reading is None:
            return self.refuse(431, f"The request's headers are larger than {MAX_HEAD} bytes.")
        call = self.call
        if call is not None and not call.started:
            self.begin(call)

    def read_on(self, rest: bytes) -> None:
        """Take a request that offers another protocol as the HTTP/1.1 it also is, its body included.

        The parser stops behind such a head (Java's client sends one with every first POST), so the request is read
        again without the offer. rest: what stands behind the head.
        """
        call = self.waiting.pop() if self.waiting else self.call
        assert call is not None
        if call is self.call:
            self.call = None
        if call.scope["method"] == "CONNECT":
            return self.refuse(400, "This is no proxy: expected a path such as /v1/models, got CONNECT.")
        kept = [pair for pair in call.scope["headers"] if pair[0] not in OFFERS]
        target = call.scope["raw_path"] + (b"?" if call.scope["query_string"] else b"") + call.scope["query_string"]
        lines = [b"%b %b HTTP/1.1\r\n" % (call.scope["method"].encode(), target)]
        lines += [b"%b: %b\r\n" % pair for pair in kept]
        self.parser, self.reading = httptools.HttpRequestParser(self), None
        self.data_received(b"".join(lines) + b"connection: close\r\n\r\n" + rest)

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
            if call.size > HIGH_WATER and call.started:
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

    def begin(self, call: Call) -> None:
        """Have a call served, by the task that served those before it; one for each would be a tenth of its cost."""
        call.started = True
        if self.task is None:
            self.task = self.loop.create_task(self.serve())
        else:
            self.wake()

    async def serve(self) -> None:
        """Run the calls of this connection in turn, and wait for the next while it lasts."""
        try:
            while not self.transport.is_closing():
                call = self.call
                if call is not None and call.started and not call.answered:
                    await call.run()
                else:
                    self.rest = self.loop.create_future()
                    await self.rest
        finally:
            self.task = None

    def wake(self) -> None:
        rest, self.rest = self.rest, None
        if rest is not None and not rest.done():
            rest.set_result(None)

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
                self.begin(self.call)
            self.resume_reading()

    def refuse(self, status: int, message: str) -> None:
        """Answer what is no request, unless an answer is under way, and hang up."""
        if self.call is None or (not self.call.started and not self.waiting):
            body = error_body(status, message)
            head = b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
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
