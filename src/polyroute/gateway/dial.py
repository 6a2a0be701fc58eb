"""Where a URL points, the head of a request, and how a connection is opened: TCP, TLS, and through a proxy."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.transport import Headers

HOP_BY_HOP = frozenset(
    [b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade"]
)  # fmt: skip
BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # methods that need no length where there is no body
MAX_PROXY_HEAD = 16 * 1024  # bytes of a proxy's answer to CONNECT


class Origin(NamedTuple):
    """Whom connections are shared with: same scheme, host and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart; path and authority as they stand in a request."""

    origin: Origin
    path: bytes
    authority: bytes


@lru_cache(maxsize=1024)
def parse_url(url: str) -> Target:
    """Take an http or https URL apart. Raises: ConfigError where it cannot be one; a password is never echoed."""
    expected = "http:// or https:// with a host, ASCII, without spaces, user or fragment"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError("url", got="an unreadable URL", expected=expected) from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ConfigError("url", got=redacted(parts), expected=expected)
    origin = Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(origin, path.encode(), parts.netloc.encode())


def redacted(parts: SplitResult) -> str:
    """A URL fit to be shown: scheme, host and path."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def request_head(
    method: str, target: Target, headers: Headers, num_body: int, proxy: tuple[bytes, Headers] = (b"", ())
) -> bytes:
    """The bytes before the body: `headers` as given, hop-by-hop ones left out, our framing added.

    num_body: bytes of the body. proxy: what a proxy for plain HTTP wants before the path and after the headers.
    Raises: UpstreamError (protocol) where a line break hides in a value.
    """
    begin = _first_lines(b"%b %b%b" % (method.encode(), proxy[0], target.path), target.authority, tuple(headers))
    if num_body or method not in BODILESS:
        begin += b"content-length: %d\r\n" % num_body
    for pair in proxy[1]:
        begin += b"%b: %b\r\n" % pair
    return begin + b"\r\n"


@lru_cache(maxsize=64)
def _first_lines(asked: bytes, authority: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The request line and the headers, remembered: those of one client to one backend hardly ever change."""
    lines = [asked + b" HTTP/1.1"]
    names = [name.lower() for name, _ in headers]
    if b"host" not in names:
        lines.append(b"host: " + authority)
    lines += [b": ".join(pair) for pair, name in zip(headers, names, strict=True) if name not in HOP_BY_HOP]
    head = b"\r\n".join([*lines, b""])
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise UpstreamError("protocol", "Request head: expected no line breaks in the method or a header, got some.")
    return head


def default_tls() -> ssl.SSLContext:
    """Certificates and host names verified against the system's authorities; HTTP/1.1 alone is offered."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def proxies_from(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxies that `environ` names: {"http": url, "https": url, "no": hosts}. Lower-case variables win."""
    found = {}
    for scheme in ("http", "https", "no"):
        names = [f"{scheme}_proxy", f"{scheme}_PROXY".upper()]
        names += ["all_proxy", "ALL_PROXY"] if scheme != "no" else []
        value = next((environ[name] for name in names if environ.get(name)), None)
        if value is not None:
            found[scheme] = value
    return found


def proxy_of(origin: Origin, proxies: Mapping[str, str]) -> str | None:
    """The proxy to take to `origin`, or None. `no` lists host names; each also covers the names below it."""
    for entry in proxies.get("no", "").split(","):
        name = entry.strip().lstrip(".").lower()
        if name and (name == "*" or origin.host == name or origin.host.endswith("." + name)):
            return None
    return proxies.get(origin.scheme)


def proxy_headers(proxy: str) -> Headers:
    """The headers that say who we are to a proxy, where its URL has a user in it."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return ()
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return ((b"proxy-authorization", b"Basic " + base64.b64encode(pair.encode())),)


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel and waits for its answer; then another protocol takes the connection over."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.answer.done() and (b"\r\n\r\n" in self._received or len(self._received) > MAX_PROXY_HEAD):
            self.answer.set_result(self._received[:MAX_PROXY_HEAD])

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(b"")


async def dial(origin: Origin, protocol: asyncio.Protocol, tls: ssl.SSLContext | None, proxy: str | None) -> None:
    """Open a connection to `origin` for `protocol`. tls: None for plain TCP. Raises: UpstreamError (refused)."""
    loop = asyncio.get_running_loop()
    try:
        if proxy is None:
            name = origin.host if tls is not None else None
            await loop.create_connection(lambda: protocol, origin.host, origin.port, ssl=tls, server_hostname=name)
        elif tls is None:
            await loop.create_connection(lambda: protocol, *_address(proxy))
        else:
            await _dial_through(origin, protocol, tls, proxy)
    except (OSError, UnicodeError) as error:
        if isinstance(error, UpstreamError):
            raise
        via = f" through proxy {redacted(urlsplit(proxy))}" if proxy else ""
        message = f"{origin}: expected a connection{via}, got {error or type(error).__name__}."
        raise UpstreamError("refused", f"{message} Is the server up, and the URL right?") from error


async def _dial_through(origin: Origin, protocol: asyncio.Protocol, tls: ssl.SSLContext, proxy: str) -> None:
    """CONNECT, then TLS with the origin inside the tunnel."""
    loop = asyncio.get_running_loop()
    raw, tunnel = await loop.create_connection(_Tunnel, *_address(proxy))
    try:
        authority = str(origin).partition("://")[2].encode()
        extra = b"".join(b"%b: %b\r\n" % header for header in proxy_headers(proxy))
        raw.write(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, extra))
        answer = await tunnel.answer
        status = answer.split(b"\r\n", 1)[0].split(b" ")[1:2]
        if status != [b"200"] or not answer.endswith(b"\r\n\r\n"):
            shown = answer.split(b"\r\n", 1)[0][:80].decode("latin-1")
            where = redacted(urlsplit(proxy))
            raise UpstreamError("refused", f"{origin}: expected a tunnel from proxy {where}, got {shown!r}.")
        secured = await loop.start_tls(raw, protocol, tls, server_hostname=origin.host)
        if secured is None:
            raise UpstreamError("refused", f"{origin}: the connection was closed during the TLS handshake.")
        protocol.connection_made(secured)
    except BaseException:
        raw.abort()
        raise


def _address(proxy: str) -> tuple[str, int]:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError("proxy", got=redacted(parts), expected="http://host:port")
    return parts.hostname, parts.port or 80
