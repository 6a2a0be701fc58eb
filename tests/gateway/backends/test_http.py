"""A backend by URL: where the request goes, whose key it carries, and what is known of it afterwards."""

from __future__ import annotations

import asyncio

import pytest

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.backends.http import HttpBackend, join_url
from polyroute.gateway.client import Client
from polyroute.gateway.scripted import End, ScriptedUpstream, reply
from polyroute.gateway.transport import Timeouts

NO_TRANSPORT = object()  # for tests that end before anything is sent


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://host", "https://host/v1/chat/completions"),
        ("https://host/", "https://host/v1/chat/completions"),
        ("https://host/v1", "https://host/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("https://host:8443/api/v3", "https://host:8443/api/v3/chat/completions"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai/chat/completions"),
    ],
)
def test_a_base_url_is_read_as_clients_read_it(base, url):
    assert join_url(base, "/v1/chat/completions") == url


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host/v1?key=1", "http://host/#x"])
def test_a_url_that_is_none_is_a_config_error(url):
    with pytest.raises(ConfigError, match=r"models\.m\.url: expected a URL"):
        HttpBackend("m", url, NO_TRANSPORT)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(ConfigError) as caught:
        HttpBackend("m", "ftp://user:secret@host", NO_TRANSPORT)
    assert "secret" not in str(caught.value)


def test_the_operators_key_replaces_the_clients():
    async def go():
        client = Client()
        async with ScriptedUpstream(reply(b"{}")) as upstream:
            backend = HttpBackend("m", f"{upstream.url}/v1", client, api_key="operators")
            headers = [(b"x-kept", b"1"), (b"authorization", b"Bearer clients"), (b"x-api-key", b"clients")]
            answer = await backend.send("/v1/chat/completions", headers, b'{"model": "m"}', Timeouts())
            assert (answer.status, await answer.read()) == (200, b"{}")
            assert (await backend.status()).state == "ready"
            await backend.close()
        await client.close()
        return upstream.seen[0]

    seen = asyncio.run(go())
    assert seen.request_line == b"POST /v1/chat/completions HTTP/1.1"
    assert seen.body == b'{"model": "m"}'
    head = seen.head.lower()
    assert b"authorization: bearer operators" in head
    assert b"x-kept: 1" in head
    assert b"clients" not in head


def test_without_a_key_none_is_sent():
    async def go():
        client = Client()
        async with ScriptedUpstream(reply(b"{}")) as upstream:
            backend = HttpBackend("m", upstream.url, client)
            await (await backend.send("/v1/completions", [(b"authorization", b"x")], b"", Timeouts())).read()
        await client.close()
        return upstream.seen[0].head

    assert b"authorization" not in asyncio.run(go()).lower()


def test_a_server_that_is_not_there_is_down_for_a_while():
    async def go():
        client, now = Client(), [0.0]
        backend = HttpBackend("m", "http://127.0.0.1:1", client, clock=lambda: now[0])
        assert (await backend.status()).state == "ready"  # nobody asked it yet
        with pytest.raises(UpstreamError) as caught:
            await backend.send("/v1/completions", [], b"", Timeouts())
        assert caught.value.kind == "refused"
        status = await backend.status()
        assert status.state == "down"
        assert "127.0.0.1:1 did not answer" in status.detail
        now[0] += 31
        assert (await backend.status()).state == "ready"
        await client.close()

    asyncio.run(go())


def test_an_answer_ends_being_down_and_a_cut_is_not_down():
    async def go():
        client = Client()
        async with ScriptedUpstream([End.RST]) as upstream:
            backend = HttpBackend("m", upstream.url, client)
            with pytest.raises(UpstreamError) as caught:
                await backend.send("/v1/completions", [], b"", Timeouts())
            state = (await backend.status()).state
        await client.close()
        return caught.value.kind, state

    kind, state = asyncio.run(go())
    assert (kind, state) == ("cut", "ready")
