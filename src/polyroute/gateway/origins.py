"""Pages of other origins: which of them a browser lets call the gateway and read its answers (CORS).

A browser asks first, with OPTIONS and without a key, and shows a page nothing whose origin the answer does not name.
"""

from __future__ import annotations

from collections.abc import Collection

from polyroute.gateway.answers import Headers, Message, Scope, Send

ANY = "*"
ASK_AGAIN_S = b"600"
VARY: Headers = [(b"vary", b"Origin")]


def allowance(scope: Scope, allowed: Collection[str]) -> Headers:
    """The headers that let the page read this answer; for one that may not, only that the answer depends on it."""
    origin = dict(scope["headers"]).get(b"origin", b"")
    if ANY not in allowed and origin.decode("latin-1").lower() not in allowed:
        return VARY
    own = (
        [(b"access-control-allow-origin", b"*")]
        if ANY in allowed
        else [(b"access-control-allow-origin", origin), *VARY]
    )
    return [*own, (b"access-control-expose-headers", b"*")]


def telling(send: Send, headers: Headers) -> Send:
    """`send`, with these headers in each answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return sent


async def preflight(scope: Scope, send: Send, methods: Collection[str]) -> None:
    """Answer a browser's question whether a page may send what it wants to send."""
    asked = dict(scope["headers"])
    headers = [
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", asked.get(b"access-control-request-headers", b"*")),
        (b"access-control-max-age", ASK_AGAIN_S),
    ]
    if asked.get(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def asks_first(scope: Scope) -> bool:
    """This is a browser's question before a request, not a request."""
    return scope["method"] == "OPTIONS" and any(k == b"access-control-request-method" for k, _ in scope["headers"])
