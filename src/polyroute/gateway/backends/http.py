"""Any OpenAI-compatible server, by URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import urlsplit

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.backends.status import BackendStatus
from polyroute.gateway.transport import Headers, Reply, Timeouts, Transport

Pairs: TypeAlias = tuple[tuple[bytes, bytes], ...]
CREDENTIALS = frozenset((b"authorization", b"x-api-key", b"api-key", b"cookie"))
UNREACHABLE = frozenset(("refused", "timeout", "protocol"))
RECENT_S = 30.0  # a failure older than this says nothing about now


@lru_cache(maxsize=256)
def join_url(base: str, path: str) -> str:
    """Where `path` (like /v1/chat/completions) lives on a server whose base URL an OpenAI client would be given.

    A base with a path of its own already names the version, as clients write it: https://host/v1,
    https://host/api/v3, https://host/openai. A bare host gets the path as it is.
    """
    own = urlsplit(base).path.strip("/")
    return base.rstrip("/") + (path.removeprefix("/v1") if own else path)


@lru_cache(maxsize=64)
def with_our_key(headers: Pairs, own: Pairs) -> Pairs:
    """The headers of a request, with the operator's credentials in place of whatever came."""
    return tuple(pair for pair in headers if pair[0] not in CREDENTIALS) + own


class HttpBackend:
    """Sends requests to a server that speaks the OpenAI protocol, with the operator's key for it and no other.

    url: http:// or https://, with or without a version path; see `join_url`. api_key: sent as a bearer token.
    `status` asks nobody: it tells how the last call went, for half a minute.
    """

    path = "upstream"

    def __init__(
        self,
        id: str,
        url: str,
        transport: Transport,
        *,
        api_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ConfigError(f"models.{id}.url", got="a URL with a user name", expected="credentials in api_key only")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"models.{id}.url", got=url, expected="a URL such as http://127.0.0.1:8000/v1")
        self.id, self.url, self.transport, self.clock = id, url, transport, clock
        self._own_headers = ((b"authorization", b"Bearer " + api_key.encode()),) if api_key else ()
        self._failure: tuple[float, str] | None = None  # when, what

    async def send(self, path: str, headers: Headers, body: bytes, timeouts: Timeouts) -> Reply:
        url = join_url(self.url, path)
        ours = with_our_key(tuple(headers), self._own_headers)
        try:
            reply = await self.transport.send("POST", url, ours, body, timeouts)
        except UpstreamError as error:
            self._failure = (self.clock(), str(error)) if error.kind in UNREACHABLE else self._failure
            raise
        self._failure = None
        return reply

    async def status(self) -> BackendStatus:
        host = urlsplit(self.url).netloc
        if self._failure is not None and self.clock() - self._failure[0] < RECENT_S:
            return BackendStatus("down", f"{host} did not answer: {self._failure[1]}")
        return BackendStatus("ready", host)

    async def close(self) -> None:
        """Nothing of its own to stop."""
