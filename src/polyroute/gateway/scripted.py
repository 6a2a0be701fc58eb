"""A test double for backends: an HTTP/1.1 server on 127.0.0.1 that answers each request with exactly scripted bytes.

It can be cut off at any byte, stall, stay silent or talk nonsense, and it writes down every request it saw and the
moment its peer went away. It is for tests and benches; it checks nothing and knows no model.

    async with ScriptedUpstream(reply(b'{"ok": true}')) as upstream:
        ...                                     # send something to upstream.url
        assert upstream.seen[0].body == b"..."
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Self, TypeAlias, cast

from polyroute.gateway.transport import Headers

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
REASONS = {200: b"OK", 204: b"No Content", 400: b"Bad Request", 429: b"Too Many Requests"}


class End(Enum):
    """How an answer breaks off."""

    FIN = "fin"  # everything written is delivered, then the connection is closed in order
    RST = "rst"  # the connection is reset
    STALL = "stall"  # the connection stays open and nothing more is said until the peer leaves


Step: TypeAlias = bytes | float | End  # bytes: one write, exactly these; float: seconds of silence
Script: TypeAlias = Iterable[Step]
Framing: TypeAlias = Literal["length", "chunked", "close"]


@dataclass(slots=True, eq=False)
class Seen:
    """One request as it came in, and what became of its answer. Times are `time.monotonic()`."""

    head: bytes  # request line and headers as sent, with the blank line
    body: bytes
    connection: int  # number of the connection, counted from 0
    at: float
    sent: int = 0  # bytes of the answer that the socket took so far
    left_at: float | None = None  # when the peer closed the connection under way; None: it stayed to the end
    over: asyncio.Event = field(default_factory=asyncio.Event)  # set when the answer is out or the peer is gone

    @property
    def request_line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names and values in the order and case sent."""
        lines = self.head[:-4].split(b"\r\n")[1:]
        return [(name, value.lstrip(b" ")) for name, _, value in (line.partition(b":") for line in lines)]


class ScriptedUpstream:
    """Serves scripts until it is closed: the first request gets the first, and the last serves all that follow.

    A script may also be a function of the request. Requests need a content-length; one connection serves them in turn.
    """

    def __init__(self, *scripts: Script | Callable[[Seen], Script], tls: ssl.SSLContext | None = None):
        self.scripts, self.tls = scripts, tls
        self.seen: list[Seen] = []
        self.num_connections = 0  # ever made
        self.connected: set[asyncio.Transport] = set()
        self._changed = asyncio.Event()
        self._playing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), "127.0.0.1", 0, ssl=self.tls, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *problem: object) -> None:
        self._server.close()
        for transport in list(self.connected):
            transport.abort()
        await self.until(lambda: not self.connected)
        await self._server.wait_closed()
        for result in await asyncio.gather(*self._playing, return_exceptions=True):
            if isinstance(result, Exception):  # a script that failed
                raise result

    async def until(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        """Wait for something to be true of `seen` or the connections. Raises: TimeoutError."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def changed(self) -> None:
        self._changed.set()

    def begin(self, peer: _Peer, seen: Seen) -> asyncio.Task[None]:
        """Answer a request in a task. Where the script fails, the error is raised when the upstream is closed."""
        self.seen.append(seen)
        self.changed()
        script = self.scripts[min(len(self.seen), len(self.scripts)) - 1]
        task = asyncio.get_running_loop().create_task(peer.play(seen, script))
        self._playing.add(task)
        task.add_done_callback(self._played)
        return task

    def _played(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._playing.discard(task)


class _Peer(asyncio.Protocol):
    """One connection: reads a request, plays its script, reads the next."""

    def __init__(self, upstream: ScriptedUpstream):
        self.upstream = upstream
        self.buffer = b""
        self.current: Seen | None = None
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.number = self.upstream.num_connections
        self.upstream.num_connections += 1
        self.upstream.connected.add(self.transport)
        self.upstream.changed()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.current is None:
            self.next_request()

    def eof_received(self) -> None:
        self.peer_left()

    def connection_lost(self, error: Exception | None) -> None:
        self.peer_left()
        if self.task is not None:
            self.task.cancel()
        self.upstream.connected.discard(self.transport)
        self.upstream.changed()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def peer_left(self) -> None:
        if self.current is not None and not self.current.over.is_set():
            self.current.left_at = time.monotonic()
            self.current.over.set()
            self.upstream.changed()

    def next_request(self) -> None:
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        seen = Seen(head + end, b"", self.number, time.monotonic())
        length = next((int(value) for name, value in seen.headers if name.lower() == b"content-length"), 0)
        if len(rest) < length:
            return
        seen.body, self.buffer = rest[:length], rest[length:]
        self.current = seen
        self.task = self.upstream.begin(self, seen)

    async def play(self, seen: Seen, script: Script | Callable[[Seen], Script]) -> None:
        for step in script(seen) if callable(script) else script:
            if isinstance(step, End):
                await self.break_off(seen, step)
                return
            if isinstance(step, bytes):
                self.transport.write(step)
                await self.writable.wait()
                seen.sent += len(step)
            else:
                await asyncio.sleep(step)
        seen.over.set()
        self.current = None
        self.next_request()

    async def break_off(self, seen: Seen, end: End) -> None:
        if end is End.STALL:
            await seen.over.wait()
            return
        seen.over.set()
        if end is End.RST:
            linger = struct.pack("ii", 1, 0)  # on, with no time to linger: closing resets
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        else:
            self.transport.close()


# what answers are made of


def head(status: int = 200, headers: Headers = (JSON,)) -> bytes:
    """Status line and headers as given, with the blank line."""
    lines = [b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"Status"))]
    return b"\r\n".join(lines + [b"%b: %b" % header for header in headers]) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; of b"", the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def reply(body: bytes, status: int = 200, headers: Headers = (JSON,), framing: Framing = "length") -> list[Step]:
    """A whole answer in one write."""
    if framing == "length":
        return [head(status, [*headers, (b"content-length", b"%d" % len(body))]) + body]
    if framing == "close":
        return [head(status, [*headers, (b"connection", b"close")]) + body, End.FIN]
    return [head(status, [*headers, (b"transfer-encoding", b"chunked")]) + chunk(body) + chunk(b"")]


def stream(
    pieces: Iterable[bytes], delay_s: float = 0.0, headers: Headers = (EVENTS,), framing: Framing = "chunked"
) -> list[Step]:
    """An answer written piece by piece: the head, then each piece (a chunk of its own), with a silence before each."""
    if framing == "close":
        steps: list[Step] = [head(200, [*headers, (b"connection", b"close")])]
        last: Step = End.FIN
    else:
        steps, last = [head(200, [*headers, (b"transfer-encoding", b"chunked")])], chunk(b"")
    for piece in pieces:
        steps += [delay_s, piece if framing == "close" else chunk(piece)]
    return [*steps, last]


def cut(script: Script, at: int, how: End = End.RST) -> list[Step]:
    """The first `at` bytes of an answer, head included, and then the end."""
    steps: list[Step] = []
    for step in script:
        if isinstance(step, bytes):
            steps.append(step[:at])
            at -= len(step)
            if at <= 0:
                break
        elif not isinstance(step, End):
            steps.append(step)
    return [*steps, how]


def resliced(data: bytes, size: int) -> list[bytes]:
    """The same bytes in pieces of `size`, whatever that splits: events, UTF-8 characters, JSON strings."""
    return [data[start : start + size] for start in range(0, len(data), size)]


USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


def chat_body(text: str = "Grüße, 世界", usage: bool = True) -> bytes:
    """A chat completion as OpenAI words it."""
    message = {"role": "assistant", "content": text}
    answer = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip
    return json.dumps(answer | ({"usage": USAGE} if usage else {}), ensure_ascii=False).encode()


def chat_events(words: Sequence[str] = ("Grüße", ", ", "世界"), usage: bool = True) -> list[bytes]:
    """The same as a stream: one event a word, the finish reason, usage where wanted, and the end marker."""
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    deltas: list[tuple[dict[str, str], str | None]] = [({"content": word}, None) for word in words] + [({}, "stop")]
    payloads = [common | {"choices": [{"index": 0, "delta": d, "finish_reason": f}]} for d, f in deltas]
    if usage:
        payloads.append(common | {"choices": [], "usage": USAGE})
    return [b"data: %b\n\n" % json.dumps(p, ensure_ascii=False).encode() for p in payloads] + [b"data: [DONE]\n\n"]


def error_body(message: str, kind: str = "server_error") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()


def scenarios(delay_s: float = 0.01) -> dict[str, list[Step]]:
    """What backends have been seen to do, by name. delay_s: silence before each event of a stream."""
    events = chat_events()
    flow = stream(events, delay_s)
    half = sum(len(step) for step in flow if isinstance(step, bytes)) // 2
    calls = [b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "%b"}]}}]}\n\n' % name
             for name in (b"a", b"b")]  # fmt: skip
    html = b"<!doctype html><title>502 Bad Gateway</title>"
    zipped = [JSON, (b"content-encoding", b"gzip")]
    return {
        "json": reply(chat_body()),
        "json_chunked": reply(chat_body(), framing="chunked"),
        "json_close": reply(chat_body(), framing="close"),
        "json_gzip": reply(gzip.compress(chat_body(), mtime=0), headers=zipped),
        "json_no_usage": reply(chat_body(usage=False)),
        "json_error_200": reply(error_body("out of memory")),
        "stream": flow,
        "stream_close": stream(events, delay_s, framing="close"),
        "stream_no_usage": stream(chat_events(usage=False), delay_s),
        "stream_split": stream(resliced(b"".join(events), 7), 0.0),
        "stream_error": stream([*events[:2], b"data: %b\n\n" % error_body("out of memory")], delay_s),
        "stream_garbage": stream([events[0], b"data: {not json\n\n", b"\xff\xfe\x00 nonsense\n\n"], delay_s),
        "stream_no_end": stream(events[:2], delay_s),
        "stream_duplicate_tool": stream([*calls, *events[-3:]], delay_s),
        "cut_rst": cut(flow, half, End.RST),
        "cut_fin": cut(flow, half, End.FIN),
        "stall": cut(flow, half, End.STALL),
        "silent": [End.STALL],
        "slow_first_byte": [20 * delay_s, *reply(chat_body())],
        "closed_at_once": [End.FIN],
        "429": reply(error_body("slow down", "rate_limit_error"), 429),
        "429_retry_after": reply(error_body("slow down", "rate_limit_error"), 429, [JSON, (b"retry-after", b"1")]),
        "500": reply(error_body("it broke"), 500),
        "html": reply(html, 502, [(b"content-type", b"text/html")]),
        "not_http": [b"220 mail.example ESMTP\r\n", End.FIN],
    }
