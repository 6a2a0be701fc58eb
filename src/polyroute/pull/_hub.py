"""A model file from a hub over HTTP, continued where the last attempt ended."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable

from polyroute.pull._partial import CHUNK, Partial, SourceError

HUB = "https://huggingface.co"


def fetch_from_hub(
    partial: Partial, say: Callable[[str], None], *, endpoint: str | None = None, timeout_s: float = 10.0
) -> None:
    """Append the rest of the file. endpoint: a mirror of the hub, its URL instead of the hub's own.

    A connection that breaks is taken up again as long as each attempt brings something.
    Raises: SourceError where the hub cannot be reached or offers another file.
    """
    url = partial.model.url
    if not url:
        raise SourceError("the catalogue names no hub for it")
    if endpoint and url.startswith(HUB):
        url = endpoint.rstrip("/") + url.removeprefix(HUB)
    while partial.size < partial.model.bytes:
        before = partial.size
        try:
            append_rest(partial, url, timeout_s)
        except (OSError, http.client.HTTPException) as problem:  # URLError and timeouts are OSErrors
            if partial.size == before:
                raise SourceError(reason_of(problem)) from problem
            say(f"The hub broke off ({reason_of(problem)}); going on at {partial.size / 1e6:.0f} MB.")


def append_rest(partial: Partial, url: str, timeout_s: float) -> None:
    """One request for everything after what is there."""
    import urllib.request

    wanted = partial.model.bytes
    headers = {"User-Agent": "polyroute", "Accept-Encoding": "identity"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s) as answer:
        length = int(answer.headers.get("Content-Length") or -1)
        if partial.size and answer.status != 206:
            partial.clear()  # the server sends the whole file again
        if length >= 0 and partial.size + length != wanted:
            offered = partial.size + length
            raise SourceError(f"it offers another file: expected {wanted} bytes, got {offered}")
        while data := answer.read(CHUNK):
            if partial.size + len(data) > wanted:
                raise SourceError(f"it sends more than the {wanted} bytes expected")
            partial.append(data)
    if partial.size < wanted:
        raise http.client.IncompleteRead(b"", wanted - partial.size)


def reason_of(problem: BaseException) -> str:
    """The inmost cause in a few words."""
    reason = getattr(problem, "reason", problem)
    if isinstance(problem, http.client.IncompleteRead):
        return "the answer ended early"
    if isinstance(reason, ssl.SSLError):
        return f"TLS: {reason.reason or reason}"
    if code := getattr(problem, "code", None):
        return f"HTTP {code} {reason}"
    return getattr(reason, "strerror", None) or str(reason) or type(problem).__name__
