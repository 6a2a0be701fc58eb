"""Which headers go further, and what may stand in one."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import parse_qsl, urlencode

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
NOT_UPSTREAM = HOP_BY_HOP | frozenset(
    b"host content-length authorization x-api-key api-key cookie accept-encoding expect forwarded x-forwarded-for "
    b"x-forwarded-host x-forwarded-proto x-real-ip".split()
)
NOT_DOWNSTREAM = HOP_BY_HOP | frozenset((b"set-cookie", b"date", b"server", b"content-length"))


OURS_TO_SAY = (b"x-polyroute-", b"access-control-")
KEYS_IN_QUERIES = frozenset(("key", "api_key", "api-key", "apikey", "access_token", "token"))
EACH_ITS_OWN = frozenset(b"content-length authorization x-api-key api-key cookie".split())  # none goes upstream


def upstream_headers(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """The client's headers that a backend may see: no credentials, no cookies, nothing that belongs to the hop.

    A client sends nearly the same headers each time, so that what became of them is remembered, here and where the
    head of the request upstream is made; credentials are taken out before.
    """
    return _for_upstream(tuple([pair for pair in headers if pair[0] not in EACH_ITS_OWN]))


@lru_cache(maxsize=64)
def _for_upstream(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    kept = [(k, v) for k, v in headers if k not in NOT_UPSTREAM and not k.startswith(b"x-polyroute-")]
    return (*kept, (b"accept-encoding", b"identity"))


def upstream_query(query: bytes) -> str:
    """The client's query string as a backend may see it: `?api-version=1`, or nothing. Credentials are left out."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in pairs if name.lower() not in KEYS_IN_QUERIES])
    return f"?{kept}" if kept else ""


def downstream_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The backend's headers that the client may see; the length is set again by whoever sends the body.

    Which pages may read an answer is the gateway's to say: many servers of models allow any, and were called from here.
    """
    return [(k, v) for k, v in headers if k not in NOT_DOWNSTREAM and not k.startswith(OURS_TO_SAY)]


def one_line(text: str) -> bytes:
    """A header's value: printable ASCII, cut at 4,000 characters, so that no value can end its line."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:4000].encode()
