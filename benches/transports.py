"""For bench_transport: a fast upstream, the floor, and pyreqwest as a transport."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from polyroute.gateway.scripted import chunk, head
from polyroute.gateway.transport import Headers, Timeouts

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 90 + b'"}]}'
ANSWER = b'{"id": "chatcmpl-1", "choices": [{"message": {"content": "' + b"y" * 940 + b'"}}]}'
SENT = [
    (b"Host", b"upstream.test"), (b"X-First", b"1"), (b"content-type", b"application/json"),
    (b"Accept-Encoding", b"identity"), (b"authorization", b"Bearer sk-0"), (b"x-LAST", b"Two  Spaces"),
]  # fmt: skip
TIMEOUTS = Timeouts()
EVENTS = 200  # in one stream


class FastUpstream(asyncio.Protocol):
    """Fixed JSON at /json; at /events a stream of time-stamped events, one every 5 ms; at /burst all at once."""

    ANSWERED = head(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]) + ANSWER
    STREAM = head(200, [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.buffer.endswith(b"}"):
            return
        asked, self.buffer = self.buffer, b""
        if asked.startswith(b"POST /json"):
            self.transport.write(self.ANSWERED)
        elif asked.startswith(b"POST /burst"):
            self.transport.write(self.STREAM + event() * EVENTS + chunk(b""))
        else:
            self.transport.write(self.STREAM)
            self.tick(EVENTS)

    def tick(self, left: int) -> None:
        self.transport.write(event() if left else chunk(b""))
        if left:
            asyncio.get_running_loop().call_later(0.005, self.tick, left - 1)


def event() -> bytes:
    return chunk(b"data: %020d %b\n\n" % (time.monotonic_ns(), b"z" * 140))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(FastUpstream, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the bench closes its end


class Floor(asyncio.Protocol):
    """No parsing, no pool, no limits: a lower bound that no real client can reach."""

    def __init__(self) -> None:
        self.free: list[Floor] = []
        self.expected = len(FastUpstream.ANSWERED)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0 and not self.waiter.done():
            self.waiter.set_result(None)

    async def call(self, url: str, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        if not self.free:
            host, port = url.split("/")[2].split(":")
            _, made = await loop.create_connection(Floor, host, int(port))
            self.free.append(made)
        connection = self.free.pop()
        connection.left, connection.waiter = self.expected, loop.create_future()
        lines = b"".join(b"%b: %b\r\n" % header for header in SENT)
        connection.transport.write(b"POST /json HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (lines, len(body), body))
        await connection.waiter
        self.free.append(connection)
        return ANSWER


class RustReply:
    """A pyreqwest response as a transport.Reply, as far as the bench needs it."""

    def __init__(self, context: Any, response: Any):
        self.context, self.response, self.status = context, response, response.status

    async def chunks(self) -> AsyncIterator[bytes]:
        while (piece := await self.response.body_reader.read_chunk()) is not None:
            yield bytes(piece)
        await self.context.__aexit__(None, None, None)

    async def read(self) -> bytes:
        data = bytes(await self.response.bytes())
        await self.context.__aexit__(None, None, None)
        return data

    async def close(self) -> None:
        await self.context.__aexit__(None, None, None)


class Rust:
    """pyreqwest as a transport.Transport: nothing decoded, nothing followed."""

    def __init__(self) -> None:
        from pyreqwest.client import ClientBuilder

        built = ClientBuilder().gzip(False).brotli(False).zstd(False).deflate(False).follow_redirects(False)
        built = built.referer(False).no_proxy().connect_timeout(timedelta(seconds=TIMEOUTS.connect_s))
        self.client = built.read_timeout(timedelta(seconds=TIMEOUTS.idle_s)).build()

    async def send(self, method: str, url: str, headers: Headers, body: bytes, timeouts: Timeouts) -> RustReply:
        given = [(name.decode(), value.decode()) for name, value in headers]
        request = self.client.request(method, url).headers(given).body_bytes(body)
        request = request.streamed_read_buffer_limit(0)  # by default it fills 64 KiB before it shows even the head
        context = request.timeout(timedelta(seconds=timeouts.total_s)).build_streamed()
        return RustReply(context, await context.__aenter__())

    async def close(self) -> None:
        await self.client.close()
