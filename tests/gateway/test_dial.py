"""URLs and heads, and reaching the upstream: refusals, IPv6, TLS, proxies."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress

import pytest

from upstream_calls import HEADERS, PATIENT, client_of, collect, on_both_loops  # isort: skip
from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.client import Client, ClientConfig
from polyroute.gateway.dial import Origin, parse_url, proxies_from, proxy_of, request_head
from polyroute.gateway.scripted import ScriptedUpstream, reply, scenarios
from polyroute.gateway.transport import Timeouts


@pytest.mark.parametrize("bad", [(b"x", b"a\r\nx-admin: 1"), (b"x", b"a\nb"), (b"x\r", b"a"), (b"x", b"a\0")])
def test_a_line_break_in_a_header_is_refused_before_anything_is_sent(bad):
    with pytest.raises(UpstreamError, match="no line breaks") as caught:
        request_head("POST", parse_url("http://a/b"), [bad], 0)
    assert caught.value.kind == "protocol"


def test_urls_are_taken_apart():
    target = parse_url("http://[::1]:8080/v1?x=1")
    assert (target.origin, target.path, target.authority) == (Origin("http", "::1", 8080), b"/v1?x=1", b"[::1]:8080")
    assert str(target.origin) == "http://[::1]:8080"
    assert parse_url("https://api.test").origin == Origin("https", "api.test", 443)
    assert parse_url("https://api.test").path == b"/"
    for bad in ("ftp://a", "/v1", "http://", "http://a b/", "http://a/\r\nx", "http://a:99999/", "http://ä/"):
        with pytest.raises(ConfigError, match="expected http:// or https://"):
            parse_url(bad)
    with pytest.raises(ConfigError) as caught:
        parse_url("http://me:secret@a/")
    assert "secret" not in str(caught.value)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@on_both_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "a" * 70 + ".test"])
def test_an_upstream_that_cannot_be_reached_is_refused(run, host):
    async def main():
        client = Client()
        with pytest.raises(UpstreamError, match="expected a connection") as caught:
            await client.send("POST", f"http://{host}:{free_port()}/", [], b"", PATIENT)
        assert caught.value.kind == "refused"
        assert next(iter(client._pools.values())).taken == 0
        await client.close()

    run(main)


@on_both_loops
def test_a_connection_that_does_not_come_about_times_out(run):
    async def main():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            full = [socket.socket() for _ in range(3)]  # fill the queue: further handshakes get no answer
            for other in full:
                other.setblocking(False)
                other.connect_ex(listener.getsockname())
            client = Client()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(UpstreamError, match=r"timeouts\.connect_s") as caught:
                await client.send("POST", url, [], b"", Timeouts(connect_s=0.1))
            assert caught.value.kind == "timeout"
            await client.close()
            for other in full:
                other.close()

    run(main)


@on_both_loops
def test_ipv6(run):
    async def main():
        loop = asyncio.get_running_loop()

        class Answers(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, data):
                self.transport.write(reply(b"six")[0])

        try:
            server = await loop.create_server(Answers, "::1", 0)
        except OSError:
            pytest.skip("no IPv6 here")
        client = Client()
        port = server.sockets[0].getsockname()[1]
        assert await (await client.send("POST", f"http://[::1]:{port}/", [], b"", PATIENT)).read() == b"six"
        await client.close()
        server.close()
        await server.wait_closed()

    run(main)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for `localhost`, its own authority: (server context, path of the certificate)."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
               "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


def trusting(cert):
    return ssl.create_default_context(cafile=cert)


@on_both_loops
def test_tls_is_verified_and_names_the_host(run, authority):
    server, cert = authority
    names = []
    server.sni_callback = lambda sock, name, context: names.append(name)

    async def main():
        async with client_of(reply(b"ok"), tls=server) as (client, upstream):  # an unknown authority
            with pytest.raises(UpstreamError, match="certificate verify failed") as caught:
                await client.send("POST", upstream.url.replace("127.0.0.1", "localhost"), [], b"", PATIENT)
            assert caught.value.kind == "refused"
        async with client_of(reply(b"ok"), tls=server) as (_, upstream):
            client = Client(ClientConfig(tls=trusting(cert)))
            with pytest.raises(UpstreamError, match="certificate verify failed"):  # another name
                await client.send("POST", upstream.url, [], b"", PATIENT)
            names.clear()
            for _ in range(2):
                answer = await client.send("POST", upstream.url.replace("127.0.0.1", "localhost"), [], b"", PATIENT)
                assert await answer.read() == b"ok"
            assert names == ["localhost"]
            assert [seen.connection for seen in upstream.seen] == [upstream.seen[0].connection] * 2
            await client.close()

    run(main)


@on_both_loops
@pytest.mark.parametrize("name", ["stream", "cut_rst", "stall"])
def test_streams_behave_alike_over_tls(run, authority, name):
    server, cert = authority

    async def main():
        async with ScriptedUpstream(scenarios(0.002)[name], tls=server) as upstream:
            client = Client(ClientConfig(tls=trusting(cert)))
            url = upstream.url.replace("127.0.0.1", "localhost")
            answer = await client.send("POST", url, [], bytes(300_000), Timeouts(idle_s=0.2))
            pieces, kind = await collect(answer)
            assert pieces
            assert kind == {"stream": None, "cut_rst": "cut", "stall": "timeout"}[name]
            assert len(upstream.seen[0].body) == 300_000
            await client.close()

    run(main)


@asynccontextmanager
async def tunnelling_proxy(seen, verdict=b"HTTP/1.1 200 Connection established\r\n\r\n"):
    """A proxy that knows CONNECT alone."""
    tasks = set()

    async def pump(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        asked = await reader.readuntil(b"\r\n\r\n")
        seen.append(asked)
        writer.write(verdict)
        if b" 200 " in verdict:
            port = int(asked.split(b" ")[1].rpartition(b":")[2])
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))
        else:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*tasks)


@on_both_loops
def test_https_goes_through_a_tunnel_that_sees_no_request(run, authority):
    server, cert = authority

    async def main():
        asked = []
        async with tunnelling_proxy(asked) as proxy, ScriptedUpstream(reply(b"ok"), tls=server) as upstream:
            proxies = {"https": f"http://me:s%21cret@{proxy}"}
            client = Client(ClientConfig(tls=trusting(cert), proxies=proxies))
            url = upstream.url.replace("127.0.0.1", "localhost")
            for _ in range(2):
                assert await (await client.send("POST", url, HEADERS, b"{}", PATIENT)).read() == b"ok"
            name = url[8:].encode()
            credentials = b"proxy-authorization: Basic bWU6cyFjcmV0"
            assert asked == [b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (name, name, credentials)]
            assert all(b"proxy" not in seen.head for seen in upstream.seen)
            await client.close()

    run(main)


@on_both_loops
@pytest.mark.parametrize("verdict", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"", b"nonsense"])
def test_a_proxy_that_gives_no_tunnel_is_a_refusal(run, authority, verdict):
    async def main():
        async with tunnelling_proxy([], verdict) as proxy:
            client = Client(ClientConfig(proxies={"https": f"http://me:secret@{proxy}"}))
            with pytest.raises(UpstreamError, match="expected a tunnel from proxy") as caught:
                await client.send("POST", "https://api.test/", [], b"", PATIENT)
            assert caught.value.kind == "refused"
            assert "secret" not in str(caught.value)
            await client.close()

    run(main)


@on_both_loops
def test_plain_http_is_sent_to_its_proxy_in_absolute_form(run):
    async def main():
        async with ScriptedUpstream(reply(b"ok")) as proxy:
            client = Client(ClientConfig(proxies={"http": proxy.url.replace("//", "//me:pw@"), "no": "127.0.0.1"}))
            answer = await client.send("POST", "http://api.test:81/v1?a=b", [(b"x", b"1")], b"{}", PATIENT)
            assert await answer.read() == b"ok"
            assert proxy.seen[0].head == (
                b"POST http://api.test:81/v1?a=b HTTP/1.1\r\nhost: api.test:81\r\nx: 1\r\ncontent-length: 2\r\n"
                b"proxy-authorization: Basic bWU6cHc=\r\n\r\n"
            )
            await (await client.send("POST", proxy.url + "/direct", [], b"", PATIENT)).read()
            assert proxy.seen[1].request_line == b"POST /direct HTTP/1.1"
            await client.close()

    run(main)


def test_proxies_are_read_from_a_given_environment():
    environ = {"HTTPS_PROXY": "http://p:1", "http_proxy": "http://q:2", "HTTP_PROXY": "http://r", "NO_PROXY": ".in, b"}
    proxies = proxies_from(environ)
    assert proxies == {"http": "http://q:2", "https": "http://p:1", "no": ".in, b"}
    assert proxies_from({"ALL_PROXY": "http://p:1"}) == {"http": "http://p:1", "https": "http://p:1"}
    assert proxy_of(Origin("https", "api.test", 443), proxies) == "http://p:1"
    assert proxy_of(Origin("https", "a.in", 443), proxies) is None
    assert proxy_of(Origin("http", "b", 80), proxies) is None
    assert proxy_of(Origin("http", "ab", 80), proxies) == "http://q:2"
    assert proxy_of(Origin("http", "ab", 80), {**proxies, "no": "*"}) is None
