"""An answer that is already there, in the shape of one from the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


class CannedReply:
    """A reply whose body is known.

    pieces: the body as it is to arrive. pause_s: seconds before each piece but the first.
    """

    def __init__(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        pieces: Sequence[bytes],
        *,
        pause_s: float = 0.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        self.status, self.headers = status, headers
        self._pieces, self._pause_s, self._sleep = list(pieces), pause_s, sleep

    async def chunks(self) -> AsyncIterator[bytes]:
        pieces, self._pieces = self._pieces, []
        for number, piece in enumerate(pieces):
            if number and self._pause_s:
                await self._sleep(self._pause_s)
            yield piece

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    async def close(self) -> None:
        self._pieces = []
