"""The front door, byte by byte: what a client may send and what it gets."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from polyroute.gateway import front
from polyroute.gateway.front import Front

DATE = (b"date", b"Sun, 22 Nov 2026 07:00:00 GMT")


async def echo(scope, receive, send):
    """Answers with what it was asked, as a stream where the path says so."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    told = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), body.decode()]).encode()
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        for i in range(0, len(told), 10):
            await send({"type": "http.response.body", "body": told[i : i + 10], "more_body": True})
        return await send({"type": "http.response.body", "body": b""})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


@asynccontextmanager
async def door(app=echo, patience_s=5.0):
    state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[DATE])
    config = SimpleNamespace(loaded_app=app, timeout_keep_alive=patience_s)
    server = await asyncio.get_running_loop().create_server(lambda: Front(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], state
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def exchange(sent, *, app=echo, until_close=True, patience_s=5.0):
    """All that comes back for some bytes, sent piece by piece."""
    async with door(app, patience_s) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in [sent] if isinstance(sent, bytes) else sent:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        data = await asyncio.wait_for(reader.read(), 5) if until_close else await reader.read(65536)
        writer.close()
        return data


def ask(path=b"/x", body=b"hi", extra=b"connection: close\r\n", method=b"POST"):
    return b"%b %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n%b\r\n%b" % (method, path, len(body), extra, body)


def parts(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    return int(lines[0].split()[1]), dict(line.split(b": ", 1) for line in lines[1:]), body


def test_a_whole_answer_has_its_length_and_the_servers_headers():
    status, headers, body = parts(asyncio.run(exchange(ask(b"/a%20b?q=1"))))
    assert (status, json.loads(body)) == (200, ["POST", "/a b", "q=1", "hi"])
    assert headers[b"date"] == DATE[1]
    assert headers[b"connection"] == b"close"
    assert b"transfer-encoding" not in headers


def test_a_stream_is_chunked_and_ends():
    _, headers, body = parts(asyncio.run(exchange(ask(b"/stream"))))
    assert headers[b"transfer-encoding"] == b"chunked"
    assert body.startswith(b"a\r\n")
    assert body.endswith(b"\r\n0\r\n\r\n")


def test_an_old_client_gets_a_stream_that_ends_with_the_connection():
    old = b"POST /stream HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi"
    _, headers, body = parts(asyncio.run(exchange(old)))
    assert b"transfer-encoding" not in headers
    assert json.loads(body) == ["POST", "/stream", "", "hi"]


def test_pipelined_requests_are_answered_in_order():
    first, second, last = ask(b"/1", extra=b""), ask(b"/stream", b"b" * 300, b""), ask(b"/3")
    answer = asyncio.run(exchange(first + second + last))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b'"/1"') < answer.index(b"transfer-encoding") < answer.index(b'"/3"')


@pytest.mark.parametrize("size", [1, 7, 50])
def test_a_request_in_pieces_is_one_request(size):
    whole = ask(body=b"x" * 90)
    answer = asyncio.run(exchange([whole[i : i + size] for i in range(0, len(whole), size)]))
    assert json.loads(parts(answer)[2])[3] == "x" * 90


def test_a_chunked_body_arrives_whole():
    sent = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = asyncio.run(exchange([sent, b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n"]))
    assert json.loads(parts(answer)[2])[3] == "abcde"


def test_a_large_body_waits_for_the_application():
    answer = asyncio.run(exchange(ask(body=b"y" * 1_000_000)))
    assert len(json.loads(parts(answer)[2])[3]) == 1_000_000


def test_a_client_that_waits_to_be_asked_is_asked():
    head, body = ask(extra=b"expect: 100-continue\r\nconnection: close\r\n").split(b"\r\n\r\n")
    answer = asyncio.run(exchange([head + b"\r\n\r\n", body]))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_an_upgrade_is_not_taken_and_the_request_is_answered():
    extra = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    status, _, body = parts(asyncio.run(exchange(ask(extra=extra))))
    assert (status, json.loads(body)[3]) == (200, "hi")


def test_head_has_no_body():
    status, headers, body = parts(asyncio.run(exchange(ask(method=b"HEAD", body=b""))))
    assert (status, body) == (200, b"")
    assert int(headers[b"content-length"]) > 0


@pytest.mark.parametrize(("sent", "status"), [
    (b"not http at all\r\n\r\n", 400),
    (b"GET /x HTTP/1.1\r\nbad header\r\n\r\n", 400),
    (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n", 400),
    (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    (b"CONNECT /a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    (b"GET /x HTTP/1.1\r\nhost: a\r\nbig: " + b"z" * (front.MAX_HEAD + 10), 431),
])  # fmt: skip
def test_what_is_no_request_is_refused_in_the_protocols_shape(sent, status):
    got, headers, body = parts(asyncio.run(exchange(sent)))
    assert got == status
    assert headers[b"connection"] == b"close"
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def early(scope, receive, send):
    """Turns the request down without reading its body."""
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


def test_an_early_answer_reaches_a_client_that_is_still_sending():
    head, body = ask(body=b"y" * 500_000).split(b"\r\n\r\n")
    status, headers, said = parts(asyncio.run(exchange([head + b"\r\n\r\n", body[:1000], body[1000:]], app=early)))
    assert (status, said, headers[b"connection"]) == (413, b"no", b"close")


async def broken(scope, receive, send):
    await receive()
    if scope["path"] == "/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
    raise RuntimeError("on purpose")


def test_a_failing_application_is_a_500_or_a_cut_never_a_whole_answer(caplog):
    status, _, body = parts(asyncio.run(exchange(ask(), app=broken)))
    assert (status, json.loads(body)["error"]["type"]) == (500, "api_error")
    cut = asyncio.run(exchange(ask(b"/late"), app=broken))
    assert b"transfer-encoding: chunked" in cut
    assert not cut.endswith(b"0\r\n\r\n")
    assert "on purpose" in caplog.text


@pytest.mark.parametrize("headers", [
    [(b"x", b"1\r\ny: 2"), (b"content-length", b"0")], [(b"x", b"1\ny: 2"), (b"content-length", b"0")],
])  # fmt: skip
def test_a_header_cannot_end_its_line(headers, caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answer = asyncio.run(exchange(ask(), app=app))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"y: 2" not in answer
    assert "one line each" in caplog.text


def test_the_application_hears_when_the_client_leaves():
    async def main():
        gone = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            scope["extensions"]["polyroute.gone"](gone.set)
            assert (await receive())["type"] == "http.disconnect"
            assert gone.is_set()
            heard.set()

        heard = asyncio.Event()
        async with door(app) as (port, state):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ask())
            await asyncio.sleep(0.02)
            writer.close()
            await asyncio.wait_for(heard.wait(), 5)
            await asyncio.sleep(0.01)
            assert not state.connections
            assert not state.tasks

    asyncio.run(main())


def test_a_quiet_connection_is_closed_and_a_busy_one_is_not():
    async def slow(scope, receive, send):
        await asyncio.sleep(0.3)
        await echo(scope, receive, send)

    assert asyncio.run(exchange(b"", patience_s=0.05)) == b""
    assert asyncio.run(exchange(b"POST /x HTTP/1.1\r\nhost", patience_s=0.05)) == b""
    assert b"200 OK" in asyncio.run(exchange(ask(), app=slow, patience_s=0.05))


def test_shutdown_lets_the_answer_under_way_finish():
    async def main():
        async with door() as (port, state):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ask(extra=b"")[:-1])
            await asyncio.sleep(0.02)
            for connection in list(state.connections):
                connection.shutdown()
            writer.write(b"i")
            answer = await asyncio.wait_for(reader.read(), 5)
            assert parts(answer)[1][b"connection"] == b"close"
            writer.close()

    asyncio.run(main())


def test_a_slow_reader_holds_the_application_back():
    async def main():
        sent = 0

        async def flood(scope, receive, send):
            nonlocal sent
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(400):
                await send({"type": "http.response.body", "body": b"z" * 100_000, "more_body": True})
                sent += 1
            await send({"type": "http.response.body", "body": b""})

        async with door(flood) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(ask())
            await asyncio.sleep(0.3)
            assert sent < 300  # 40 MB fit in no socket's buffer
            while await reader.read(1 << 20):
                pass
            assert sent == 400
            writer.close()

    asyncio.run(main())


def test_no_bytes_break_the_door():
    """Whole requests with bytes changed, cut and joined at random: an answer or a close, never an exception."""

    class Wire:
        closed = False

        def get_extra_info(self, name):
            return ("127.0.0.1", 1)

        def write(self, data):
            assert data.startswith(b"HTTP/1.1 ") or data

        def is_closing(self):
            return self.closed

        def close(self):
            self.closed = True

        abort = close

        def pause_reading(self):
            pass

        resume_reading = pause_reading

    async def main():
        rng = random.Random(5)
        config = SimpleNamespace(loaded_app=echo, timeout_keep_alive=5.0)
        state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[DATE])
        seeds = [ask(), ask(b"/stream", b"b" * 40, b""), ask(extra=b"connection: upgrade\r\nupgrade: h2c\r\n"),
                 b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]  # fmt: skip
        for _ in range(600):
            data = bytearray(b"".join(rng.choices(seeds, k=rng.randint(1, 3))))
            for _ in range(rng.randint(0, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            connection = Front(config, state, {})
            connection.connection_made(Wire())
            while data and not connection.transport.closed:
                size = rng.randint(1, 80)
                connection.data_received(bytes(data[:size]))
                del data[:size]
                await asyncio.sleep(0)
            connection.connection_lost(None)
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not state.connections
        assert not state.tasks

    asyncio.run(main())
