"""What the gateway knows of a place that answers requests: how to send to it, and whether it can answer now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from polyroute.gateway.transport import Headers, Reply, Timeouts

State: TypeAlias = Literal["ready", "cold", "starting", "down"]


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a backend can answer, and why not. `cold` answers after a start that the first request brings about."""

    state: State
    detail: str = ""  # one line for the operator; ends with what to do where something can be done


class Backend(Protocol):
    """Somewhere a request can be sent: a server by URL, a local model, a recording."""

    id: str
    path: str  # upstream or replay: the x-polyroute-path of its answers

    async def send(self, path: str, headers: Headers, body: bytes, timeouts: Timeouts) -> Reply:
        """POST `body` to `path` (like /v1/chat/completions); the model's name in it is already the backend's own.

        Raises: UpstreamError (refused, timeout, cut, protocol, busy, missing).
        """
        ...

    async def status(self) -> BackendStatus:
        """Whether it can answer. Costs no request to a server that may charge for it."""
        ...

    async def close(self) -> None:
        """Stop what was started for it. The transport belongs to whoever made it and stays open."""
        ...
