"""How the gateway reaches a backend over HTTP: three small shapes. The client that ships is client.py.

To carry bytes in another way, write an object with `send` and `close` and pass it in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias

from polyroute.errors import ConfigError

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long each phase of one upstream call may take, in seconds. `float("inf")` lifts a limit."""

    connect_s: float = 5.0  # a place in the pool, DNS, TCP and TLS together
    first_byte_s: float = 120.0  # from the request being written to the first byte of the answer's body
    idle_s: float = 60.0  # upstream silent while we wait for the next byte of the body
    total_s: float = 600.0  # from `send` to the last byte read

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (value := getattr(self, field.name)) > 0:  # also catches NaN
                raise ConfigError(f"timeouts.{field.name}", got=value, expected="seconds, above 0")


class Reply(Protocol):
    """An answer whose head has arrived. Read it once, by `chunks` or by `read`, or close it."""

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case, values and order as sent

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives: transfer coding undone, content coding untouched, chunks never joined.

        What arrived before a failure is yielded before the failure is raised. Cancelling a wait abandons the reply;
        to wait with a limit and go on, keep the pending `anext` in a task and use `asyncio.wait`.
        Raises: UpstreamError (timeout, cut, protocol); a body that ends early never looks complete.
        """
        ...

    async def read(self) -> bytes:
        """The rest of the body in one piece. Raises: UpstreamError, and then what had arrived is lost."""
        ...

    async def close(self) -> None:
        """Give the answer up: unless it is complete the upstream is disconnected at once. Safe to call twice."""
        ...


class Transport(Protocol):
    """Sends requests upstream. Cancelling `send` disconnects the upstream at once."""

    async def send(self, method: str, url: str, headers: Headers, body: bytes, timeouts: Timeouts) -> Reply:
        """Send one request and wait for the head of its answer, whatever its status; redirects are not followed.

        Header names, values and their order reach the upstream as given, except that the message's framing is the
        transport's own: content-length is set from `body`, hop-by-hop headers are dropped, host is added if absent.
        Raises: UpstreamError (refused, timeout, cut, protocol, busy).
        """
        ...

    async def close(self) -> None:
        """Close every connection; calls under way fail with UpstreamError (cut)."""
        ...
