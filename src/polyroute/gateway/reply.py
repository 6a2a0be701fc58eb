"""What a reader holds while an answer arrives on a connection (see transport.Reply)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from polyroute.errors import UpstreamError

HIGH_WATER = 64 * 1024  # bytes waiting for the reader above which the socket is not read
LOW_WATER = 16 * 1024


class Source(Protocol):
    """Where a reply's bytes come from."""

    def resume(self) -> None:
        """There is room for more."""
        ...

    def abandon(self) -> None:
        """Nobody wants the rest: disconnect at once."""
        ...


class HttpReply:
    """One answer: filled by its connection, emptied by one reader. `source` is None once the last byte has arrived."""

    __slots__ = ("_done", "_error", "_loop", "_pieces", "_size", "_source", "_waiter", "headers", "status")

    def __init__(self, source: Source, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0  # 0 until the head has arrived
        self.headers: list[tuple[bytes, bytes]] = []
        self._loop = loop
        self._source: Source | None = source
        self._pieces: deque[bytes] = deque()
        self._size = 0  # bytes in _pieces
        self._done = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # the reader's side

    def chunks(self) -> AsyncIterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        pieces = self._pieces
        while not pieces:
            if self._error is not None:
                raise self._error
            if self._done:
                raise StopAsyncIteration
            await self.wait()
        piece = pieces.popleft()
        self._size -= len(piece)
        if self._size < LOW_WATER and self._source is not None:
            self._source.resume()
        return piece

    async def read(self) -> bytes:
        pieces: list[bytes] = []
        while not self._done:
            if self._error is not None:
                raise self._error
            self._move(pieces)
            if self._source is not None:
                self._source.resume()
            await self.wait()
        self._move(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def close(self) -> None:
        if not self._done:
            self.fail(self._error or UpstreamError("cut", "The reply was closed before it was complete."))
        self._pieces.clear()

    def _move(self, pieces: list[bytes]) -> None:
        pieces += self._pieces
        self._pieces.clear()
        self._size = 0

    # the connection's side

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for the next bytes."""
        return self._waiter is not None

    @property
    def open(self) -> bool:
        """Neither complete nor failed."""
        return self._source is not None

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    async def wait(self) -> None:
        """Until something happens to this reply. Cancelled: the reply is given up."""
        assert self._waiter is None, "a reply has one reader"
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self._waiter = None
            await self.close()
            raise

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def feed(self, data: bytes) -> bool:
        """Take a piece of the body. Returns whether the reader is so far behind that reading should pause."""
        self._pieces.append(data)
        self._size += len(data)
        self.wake()
        return self._size > HIGH_WATER

    def finish(self) -> None:
        """The last byte has arrived."""
        self._source, self._done = None, True
        self.wake()

    def fail(self, error: UpstreamError) -> None:
        """Nothing more will come; what came is still read first. The source, if it still is one, disconnects."""
        source, self._source = self._source, None
        self._error = error
        if source is not None:
            source.abandon()
        self.wake()
