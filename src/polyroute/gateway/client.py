"""The transport that ships: HTTP/1.1 over pooled connections, plain or TLS, on asyncio or uvloop.

Bytes go through unchanged: nothing is decompressed, followed, cached or retried, save one repeat of a request whose
kept connection turned out to be closed already. HTTP/2 is not offered upstream; docs/log.md, "Upstream client", has
the measurements behind that.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.connection import Connection
from polyroute.gateway.dial import Origin, default_tls, dial, parse_url, proxy_headers, proxy_of, request_head
from polyroute.gateway.reply import HttpReply
from polyroute.gateway.transport import Headers, Timeouts


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientConfig:
    """How many connections `Client` keeps, and how it opens them."""

    max_connections: int = 1000  # open at a time to one origin; more requests wait up to `connect_s`, then are busy
    max_idle: int = 100  # kept open between requests, for each origin
    idle_expiry_s: float = 30.0  # an idle connection is closed after this; servers often do so earlier
    tls: ssl.SSLContext | None = None  # None: verify against the system's authorities
    proxies: Mapping[str, str] = field(default_factory=dict)  # see dial.proxies_from

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise ConfigError("max_connections", got=self.max_connections, expected="a number, 1 or more")
        if self.max_idle < 0:
            raise ConfigError("max_idle", got=self.max_idle, expected="a number, 0 or more")
        if not self.idle_expiry_s > 0:
            raise ConfigError("idle_expiry_s", got=self.idle_expiry_s, expected="seconds, above 0")


class OriginPool:
    """The connections to one origin, and the requests that wait for one, first come first served."""

    def __init__(self, origin: Origin, config: ClientConfig) -> None:
        self.origin, self.config = origin, config
        self.loop = asyncio.get_running_loop()
        self.proxy = proxy = proxy_of(origin, config.proxies)
        plain = proxy is not None and origin.scheme == "http"  # such a proxy wants the whole URL and no tunnel
        self.to_proxy = (str(origin).encode(), proxy_headers(proxy)) if plain and proxy else (b"", ())
        self.idle: list[Connection] = []  # the last used is used first
        self.open: set[Connection] = set()
        self.taken = 0  # places: open connections and those being opened
        self.waiting: deque[asyncio.Future[Connection | None]] = deque()

    def pop(self) -> Connection | None:
        """An idle connection that is still good, if there is one."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                return connection
        return None

    async def place(self) -> Connection | None:
        """An idle connection, or None: the right to open one, for which `connect` must then be called."""
        while (connection := self.pop()) is None:
            if self.taken < self.config.max_connections:
                self.taken += 1
                return None
            connection = await self._wait()
            if connection is None or connection.usable:
                return connection
        return connection

    async def _wait(self) -> Connection | None:
        place: asyncio.Future[Connection | None] = self.loop.create_future()
        self.waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # given to us as we gave up: pass it on
                self._pass_on(place.result())
            raise

    async def connect(self, tls: ssl.SSLContext | None) -> Connection:
        connection = Connection(self, str(self.origin))
        try:
            await dial(self.origin, connection, tls, self.proxy)
            if not connection.usable:
                raise UpstreamError("cut", f"{self.origin}: expected a connection, got one that was closed at once.")
        except BaseException:
            self._pass_on(None)
            raise
        self.open.add(connection)
        return connection

    def _pass_on(self, given: Connection | None) -> None:
        """Give a connection, or the right to open one (None), to whoever waits longest."""
        while self.waiting:
            place = self.waiting.popleft()
            if not place.done():
                place.set_result(given)
                return
        if given is None:
            self.taken -= 1
        elif len(self.idle) >= self.config.max_idle:
            given.abandon()
        else:
            self.released(given)

    def released(self, connection: Connection) -> None:
        if self.waiting or len(self.idle) >= self.config.max_idle:
            self._pass_on(connection)
        else:
            connection.rest(self.config.idle_expiry_s)
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self.open:
            self.open.remove(connection)
            if connection in self.idle:
                self.idle.remove(connection)
            self._pass_on(None)

    def close(self) -> None:
        for place in self.waiting:
            if not place.done():
                place.set_exception(UpstreamError("cut", f"{self.origin}: the client was closed."))
        self.waiting.clear()
        for connection in list(self.open):
            connection.close("the client was closed")

    def drop_idle(self) -> None:
        """Close what lies idle: one of them turned out to be dead, and the others are older."""
        while self.idle:
            self.idle.pop().abandon()


class Client:
    """A `Transport` over HTTP/1.1, for one event loop: use it and close it there."""

    def __init__(self, config: ClientConfig | None = None) -> None:
        self.config = config or ClientConfig()
        self._pools: dict[Origin, OriginPool] = {}
        self._closed = False

    async def send(self, method: str, url: str, headers: Headers, body: bytes, timeouts: Timeouts) -> HttpReply:
        """See transport.Transport. Raises: also ConfigError where `url` is no http or https URL."""
        target = parse_url(url)
        pool = self._pools.get(target.origin) or self._new_pool(target.origin)
        head = request_head(method, target, headers, len(body), pool.to_proxy)
        deadline = pool.loop.time() + timeouts.total_s
        connection = pool.pop() or await self._take(pool, timeouts, deadline)
        try:
            return await connection.exchange(head, body, timeouts, deadline)
        except UpstreamError:
            if not connection.stale:
                raise
        pool.drop_idle()
        connection = await self._take(pool, timeouts, deadline)
        return await connection.exchange(head, body, timeouts, deadline)

    async def close(self) -> None:
        """Close every connection and wait until the sockets are gone."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        for _ in range(100):
            if not any(pool.open for pool in self._pools.values()):
                break
            await asyncio.sleep(0)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.config.tls or default_tls()

    def _new_pool(self, origin: Origin) -> OriginPool:
        pool = self._pools[origin] = OriginPool(origin, self.config)
        return pool

    async def _take(self, pool: OriginPool, timeouts: Timeouts, deadline: float) -> Connection:
        """A connection within `connect_s`."""
        limit = min(timeouts.connect_s, deadline - pool.loop.time())
        phase = "busy"
        try:
            async with asyncio.timeout(limit if limit < float("inf") else None):
                if self._closed:
                    raise UpstreamError("refused", f"{pool.origin}: the client is closed.")
                connection = await pool.place()
                phase = "timeout"
                if connection is None:
                    connection = await pool.connect(self._tls if pool.origin.scheme == "https" else None)
        except TimeoutError as error:
            what = f"one of {pool.config.max_connections} in use to come free" if phase == "busy" else "one to open"
            message = f"{pool.origin}: wanted a connection, expected {what} within {limit:g} s (timeouts.connect_s)."
            raise UpstreamError(phase, message) from error
        if self._closed:
            connection.abandon()
            raise UpstreamError("cut", f"{pool.origin}: the client was closed.")
        return connection
