"""Credentials stay here, and no value ends its line."""

from __future__ import annotations

from polyroute.gateway.headers import downstream_headers, one_line, upstream_headers


def test_credentials_and_hop_headers_go_no_further():
    sent = [
        (b"host", b"x"), (b"authorization", b"Bearer s"), (b"x-api-key", b"s"), (b"cookie", b"a=b"),
        (b"content-type", b"application/json"), (b"openai-beta", b"v"), (b"x-polyroute-policy", b"p"),
        (b"accept-encoding", b"gzip"), (b"connection", b"keep-alive"), (b"transfer-encoding", b"chunked"),
    ]  # fmt: skip
    kept = upstream_headers(sent)
    assert kept == ((b"content-type", b"application/json"), (b"openai-beta", b"v"), (b"accept-encoding", b"identity"))
    other = [(k, b"Bearer t") if k == b"authorization" else (k, v) for k, v in sent]
    assert upstream_headers(other) is kept  # what is remembered knows nothing of credentials
    back = [(b"set-cookie", b"a"), (b"x-ratelimit-remaining", b"3"), (b"connection", b"close"), (b"server", b"x")]
    assert downstream_headers(back) == [(b"x-ratelimit-remaining", b"3")]


def test_a_header_value_cannot_end_its_line():
    assert one_line("one\r\nx-b: two\u20ac") == b"one??x-b: two?"
    assert one_line("plain") == b"plain"
    assert len(one_line("x" * 9000)) == 4000
