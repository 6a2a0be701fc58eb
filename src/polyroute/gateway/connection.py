"""One HTTP/1.1 connection to an upstream: requests out, answers in, limits kept."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

import httptools

from polyroute.errors import UpstreamError
from polyroute.gateway.reply import HttpReply
from polyroute.gateway.transport import Timeouts

MAX_HEAD = 64 * 1024  # bytes of status line and headers, and of framing between two pieces of a body
SLICE = 64 * 1024  # bytes of a large request body handed to the socket at a time
STALE_WITHIN_S = 1.0  # a kept connection lost this soon after a request was closed before it saw the request
NEVER = float("inf")
LIMITED = {
    "first_byte_s": "the first byte of the body",
    "idle_s": "the next bytes of the body",
    "total_s": "the whole answer",
}


class Pool(Protocol):
    """Who owns a connection between requests."""

    def released(self, connection: Connection) -> None:
        """The connection has read its answer to the end and may be used again."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is closed."""
        ...


class Connection(asyncio.Protocol):
    """Carries one request at a time. One lazy timer serves every limit: arming it costs nothing per request.

    The parser calls back: on_message_begin, on_header, on_headers_complete, on_body, on_message_complete.
    """

    __slots__ = (
        "_bodiless", "_body_began", "_complete", "_deadline", "_heard_at", "_idle_until", "_keep", "_loop", "_overhead",
        "_parser", "_pool", "_problem", "_reading_paused", "_reply", "_sent_at", "_timeouts", "_timer", "_timer_at",
        "_transport", "_until_close", "_uploading", "_uses", "_where", "_writing_paused", "stale",
    )  # fmt: skip

    def __init__(self, pool: Pool, where: str) -> None:
        self.stale = False  # failed because the server had closed it while it lay idle
        self._loop = asyncio.get_running_loop()
        self._pool, self._where = pool, where
        self._parser: Any = None
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reply: HttpReply | None = None
        self._uses = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._idle_until = NEVER
        self._writing_paused = self._reading_paused = self._uploading = False
        self._complete = self._bodiless = self._until_close = self._keep = False
        self._overhead = 0  # bytes read since the last piece of a body
        self._problem = ""

    # the pool's side

    @property
    def usable(self) -> bool:
        return self._reply is None and not self._transport.is_closing()

    async def exchange(self, head: bytes, body: bytes, timeouts: Timeouts, deadline: float) -> HttpReply:
        """Send a request and wait for the head of its answer. deadline: loop time for the whole."""
        self._reply = reply = HttpReply(self, self._loop)
        self._timeouts, self._deadline = timeouts, deadline
        self._bodiless = head.startswith(b"HEAD ")
        self._uses += 1
        self._sent_at = now = self._loop.time()
        self._heard_at = 0.0  # 0: nothing yet
        self._body_began = self._complete = False
        self._overhead = 0
        due = min(now + timeouts.first_byte_s, now + timeouts.idle_s, deadline)
        if due < self._timer_at:
            self._arm(due)
        if len(body) <= SLICE:
            self._transport.write(head + body if body else head)
        else:
            await self._upload(reply, head, body)
        while not reply.status:
            reply.check()
            await reply.wait()
        return reply

    async def _upload(self, reply: HttpReply, head: bytes, body: bytes) -> None:
        """Write a large body at the upstream's pace; an early refusal stops it."""
        view, self._uploading = memoryview(body), True
        self._transport.write(head)
        for start in range(0, len(body), SLICE):
            while self._writing_paused and reply.open and reply.status < 400:
                await reply.wait()
            if not reply.open or reply.status >= 400:
                return  # still marked as uploading: the connection is not used again
            self._transport.write(view[start : start + SLICE])
            self._sent_at = self._loop.time()
        self._uploading = False

    def rest(self, expiry_s: float) -> None:
        """Lie idle in the pool, at most so long."""
        self._idle_until = due = self._loop.time() + expiry_s
        if due < self._timer_at:
            self._arm(due)

    def abandon(self) -> None:
        """Disconnect at once, whatever is under way."""
        self._reply = None
        self._transport.abort()

    def close(self, why: str) -> None:
        """Disconnect; an exchange under way fails with `why`."""
        self._fail("cut", why)

    def resume(self) -> None:
        """The reader has made room."""
        if self._reading_paused:
            self._reading_paused = False
            self._heard_at = self._loop.time()
            self._transport.resume_reading()

    # the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # the server speaks unasked, as with a 408 before it closes
            self._transport.abort()
            return
        self._heard_at = self._loop.time()
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail("protocol", f"expected an HTTP/1.1 answer, got one that breaks it: {self._problem or error}")
                return
            self._keep = False
        if self._complete:
            self._finish()
        elif self._overhead > MAX_HEAD:
            self._fail("protocol", f"expected at most {MAX_HEAD} bytes of headers or framing, got more")

    def eof_received(self) -> None:
        return None  # close our side too

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, NEVER
        if self._reply is not None:
            self._cut(error)
        self._parser = None
        self._pool.lost(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._uploading and self._reply is not None:
            self._reply.wake()

    # the parser's side

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer to one request: whatever it is, it is not for the next one
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        if reply is not None and not reply.status:  # what follows the body is a trailer, and dropped
            reply.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        reply, status = self._reply, self._parser.get_status_code()
        if reply is None or self._complete:
            return
        if self._overhead > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in reply.headers) > MAX_HEAD:
            self._problem = f"headers of more than {MAX_HEAD} bytes"
            raise ValueError(self._problem)
        if status == 101:
            self._problem = "a switch of protocols nobody asked for"
            raise ValueError(self._problem)
        if status < 200:  # 100 continue, 103 early hints: the answer is still to come
            reply.headers.clear()
            return
        self._keep = self._parser.should_keep_alive()
        self._until_close = not self._keep and not _framed(reply.headers)
        if self._bodiless:
            self._complete, self._keep = True, False
        reply.status = status
        reply.wake()

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or self._complete:
            return
        self._body_began = True
        self._overhead = 0
        if reply.feed(data) and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._reply is not None and self._reply.status:
            self._complete = True

    # what follows

    def _finish(self) -> None:
        """The answer is whole: free the connection, whether or not the reader has read it yet."""
        reply, self._reply = self._reply, None
        assert reply is not None
        reply.finish()
        if self._keep and not self._uploading:
            self.resume()
            self._pool.released(self)
        else:
            self._transport.abort()

    def _cut(self, error: Exception | None) -> None:
        """The connection was lost under way: the end of a body that lasts until then, or else a failure."""
        reply = self._reply
        assert reply is not None
        if self._until_close and reply.status and error is None:
            self._keep = False
            self._finish()
            return
        quick = self._loop.time() - self._sent_at < STALE_WITHIN_S
        self.stale = self._uses > 1 and not self._heard_at and quick
        phase = "in the body" if reply.status else "in the headers" if self._heard_at else "before the first byte"
        self._fail("cut", f"expected a whole answer, got cut off {phase}" + (f" ({error})" if error else ""))

    def _fail(self, kind: str, why: str) -> None:
        reply = self._reply
        if reply is not None:
            reply.fail(UpstreamError(kind, f"{self._where}: {why}."))
        self.abandon()

    def _arm(self, due: float) -> None:
        """See to it that the limits are looked at no later than `due`, which is before they would be."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at, self._timer = due, self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Act on a limit that has passed, or look again when the next one may."""
        self._timer, self._timer_at = None, NEVER
        reply, now = self._reply, self._loop.time() + 0.001  # the loop's clock ticks in milliseconds
        if reply is None:
            if now >= self._idle_until:
                self._transport.abort()
            elif not self._transport.is_closing() and self._idle_until < NEVER:
                self._arm(self._idle_until)
            return
        limits = self._timeouts
        if not self._body_began:
            due, name, limit = self._sent_at + limits.first_byte_s, "first_byte_s", limits.first_byte_s
        elif not reply.awaited:  # the reader is slow, not the upstream
            due, name, limit = now + limits.idle_s, "idle_s", limits.idle_s
        else:
            due, name, limit = self._heard_at + limits.idle_s, "idle_s", limits.idle_s
        if self._deadline <= due:
            due, name, limit = self._deadline, "total_s", limits.total_s
        if now >= due:
            self._fail("timeout", f"expected {LIMITED[name]} within {limit:g} s (timeouts.{name}), got no more in time")
        elif (again := min(due, now + limits.idle_s)) < NEVER:
            self._arm(again)


def _framed(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the end of the body shows without the end of the connection."""
    return any(
        name == b"content-length" or (name == b"transfer-encoding" and value.strip().lower().endswith(b"chunked"))
        for name, value in headers
    )
