"""The upstream client against a byte-scripted upstream, on both event loops."""

from __future__ import annotations

import asyncio
import http.client
import time

import pytest

from upstream_calls import HEADERS, PATIENT, client_of, collect, on_both_loops, post  # isort: skip
from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.client import Client, ClientConfig
from polyroute.gateway.connection import MAX_HEAD
from polyroute.gateway.reply import HIGH_WATER
from polyroute.gateway.scripted import EVENTS, End, chat_body, chunk, head, reply, scenarios, stream
from polyroute.gateway.transport import Timeouts

BROKEN = {"cut_rst": "cut", "cut_fin": "cut", "stall": "timeout", "silent": "timeout", "closed_at_once": "cut",
          "not_http": "protocol"}  # fmt: skip


def judged_by_stdlib(url):
    """The same request through http.client: status, headers with lower-case names, body."""
    other = http.client.HTTPConnection(url.partition("//")[2], timeout=5)
    other.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
    answer = other.getresponse()
    body = answer.read()
    other.close()
    return answer.status, [(k.lower().encode(), v.encode()) for k, v in answer.getheaders()], body


# bytes


@on_both_loops
@pytest.mark.parametrize("name", [name for name in scenarios() if name not in BROKEN])
def test_whole_answers_arrive_as_an_independent_client_reads_them(run, name):
    async def main():
        async with client_of(scenarios(0.002)[name]) as (client, upstream):
            status, headers, body = await asyncio.to_thread(judged_by_stdlib, upstream.url)
            answer = await post(client, upstream)
            assert (answer.status, answer.headers, await answer.read()) == (status, headers, body)
            pieces, kind = await collect(await post(client, upstream))
            assert (b"".join(pieces), kind) == (body, None)

    run(main)


@on_both_loops
@pytest.mark.parametrize(("name", "kind"), BROKEN.items())
def test_broken_answers_fail_with_the_right_kind_and_keep_what_came_before(run, name, kind):
    flow = scenarios(0.002)["stream"]
    hasty = Timeouts(first_byte_s=0.1, idle_s=0.1)

    async def main():
        async with client_of(scenarios(0.002)[name], flow) as (client, upstream):
            if name in ("silent", "closed_at_once", "not_http"):
                with pytest.raises(UpstreamError) as caught:
                    await post(client, upstream, timeouts=hasty)
                assert caught.value.kind == kind
                return
            pieces, got = await collect(await post(client, upstream, timeouts=hasty))
            whole, none = await collect(await post(client, upstream))
            assert (got, none) == (kind, None)
            assert pieces
            assert b"".join(whole).startswith(b"".join(pieces))
            assert len(b"".join(pieces)) < len(b"".join(whole))

    run(main)


@on_both_loops
def test_read_of_a_broken_body_fails(run):
    async def main():
        async with client_of(scenarios(0.0)["cut_rst"]) as (client, upstream):
            answer = await post(client, upstream)
            with pytest.raises(UpstreamError, match=r"127\.0\.0\.1:\d+: expected a whole .* cut off in the body"):
                await answer.read()

    run(main)


@on_both_loops
def test_interim_answers_are_skipped(run):
    script = [b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", *reply(b"ok")]

    async def main():
        async with client_of(script) as (client, upstream):
            for _ in range(2):
                answer = await post(client, upstream)
                assert (answer.status, await answer.read()) == (200, b"ok")
                assert b"link" not in dict(answer.headers)
            assert upstream.num_connections == 1

    run(main)


@on_both_loops
def test_answers_without_a_body(run):
    async def main():
        async with client_of([head(204, [])], [head(200, [(b"content-length", b"999")])], reply(b"ok")) as (client, up):
            answer = await post(client, up)
            assert (answer.status, await answer.read()) == (204, b"")
            answer = await client.send("HEAD", up.url, [], b"", PATIENT)
            assert (answer.status, await answer.read()) == (200, b"")
            assert up.seen[1].head == b"HEAD / HTTP/1.1\r\nhost: %b\r\n\r\n" % up.url[7:].encode()
            answer = await client.send("GET", up.url + "/v1/models?limit=2", [], b"", PATIENT)
            assert await answer.read() == b"ok"
            assert up.seen[2].request_line == b"GET /v1/models?limit=2 HTTP/1.1"

    run(main)


# requests


@on_both_loops
def test_the_upstream_sees_headers_and_body_as_given(run):
    given = [*HEADERS, (b"Authorization", b"Bearer sk-1"), (b"accept-encoding", b"br, gzip"), (b"x-empty", b"")]
    framing = [(b"Content-Length", b"999"), (b"Transfer-Encoding", b"chunked"), (b"Connection", b"close")]

    async def main():
        async with client_of(reply(b"ok")) as (client, upstream):
            await (await post(client, upstream, b'{"a": "\xc3\xbc"}', headers=[*given, *framing])).read()
            seen = upstream.seen[0]
            assert seen.headers == [
                (b"host", upstream.url[7:].encode()), *given, (b"content-length", b"11")]  # fmt: skip
            assert seen.body == b'{"a": "\xc3\xbc"}'
            await (await post(client, upstream, headers=[(b"x-a", b"1"), (b"Host", b"api.test")])).read()
            assert upstream.seen[1].headers == [(b"x-a", b"1"), (b"Host", b"api.test"), (b"content-length", b"2")]

    run(main)


@on_both_loops
@pytest.mark.parametrize("size", [65_536, 65_537, 8_000_000])
def test_large_bodies_go_up_whole(run, size):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def main():
        async with client_of(reply(b"ok")) as (client, upstream):
            for _ in range(2):
                assert await (await post(client, upstream, body)).read() == b"ok"
            assert [seen.body == body for seen in upstream.seen] == [True, True]
            assert upstream.num_connections == 1

    run(main)


@on_both_loops
def test_an_early_refusal_ends_a_large_upload(run):
    """The upstream says 413 after the first bytes and never reads on; the connection is not used again."""
    made = []

    class Refuses(asyncio.Protocol):
        def connection_made(self, transport):
            made.append(transport)

        def data_received(self, data):
            made[-1].pause_reading()
            made[-1].write(reply(b"too large", 413)[0])

    async def main():
        server = await asyncio.get_running_loop().create_server(Refuses, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        client = Client()
        answer = await client.send("POST", url, [], bytes(30_000_000), PATIENT)
        assert (answer.status, await answer.read()) == (413, b"too large")
        assert not next(iter(client._pools.values())).idle
        await client.close()
        made[0].abort()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)

    run(main)


# limits in time


@on_both_loops
@pytest.mark.parametrize(
    ("script", "limits", "name"),
    [
        ([End.STALL], {"first_byte_s": 0.05}, "first_byte_s"),
        ([head(200, [EVENTS, (b"transfer-encoding", b"chunked")]), End.STALL], {"first_byte_s": 0.05}, "first_byte_s"),
        ([*stream([b"x"] * 3)[:-1], End.STALL], {"idle_s": 0.05}, "idle_s"),
        (stream([b"x"] * 100, 0.02), {"total_s": 0.15}, "total_s"),
        ([End.STALL], {"total_s": 0.05}, "total_s"),
    ],
)
def test_each_limit_is_kept_and_named(run, script, limits, name):
    async def main():
        async with client_of(script) as (client, upstream):
            with pytest.raises(UpstreamError, match=rf"timeouts\.{name}") as caught:
                await (await post(client, upstream, timeouts=Timeouts(**limits))).read()
            assert caught.value.kind == "timeout"
            await upstream.until(lambda: not upstream.connected)  # and the upstream was let go

    run(main)


@on_both_loops
def test_waiting_for_the_first_token_after_the_head_is_not_idleness(run):
    script = [head(200, [EVENTS, (b"transfer-encoding", b"chunked")]), 0.2, chunk(b"token"), chunk(b"")]

    async def main():
        async with client_of(script) as (client, upstream):
            answer = await post(client, upstream, timeouts=Timeouts(first_byte_s=5, idle_s=0.05))
            assert await answer.read() == b"token"

    run(main)


@on_both_loops
def test_silence_after_a_late_first_byte_is_noticed_in_time(run):
    script = [head(200, [EVENTS, (b"transfer-encoding", b"chunked")]), 0.15, chunk(b"token"), End.STALL]

    async def main():
        async with client_of(script) as (client, upstream), asyncio.timeout(10):
            answer = await post(client, upstream, timeouts=Timeouts(first_byte_s=30, idle_s=0.1))
            assert await collect(answer) == ([b"token"], "timeout")

    run(main)


@on_both_loops
def test_a_slow_reader_is_no_idle_upstream(run):
    blocks = [b"b" * HIGH_WATER] * 80  # more than the sockets hold, so that the upstream is truly stopped

    async def main():
        async with client_of(stream(blocks)) as (client, upstream):
            answer = await post(client, upstream, timeouts=Timeouts(idle_s=0.1))
            await asyncio.sleep(0.4)
            assert await answer.read() == b"".join(blocks)

    run(main)


def test_timeouts_must_be_positive():
    for name in ("connect_s", "first_byte_s", "idle_s", "total_s"):
        for bad in (0, -1.0, float("nan")):
            with pytest.raises(ConfigError, match=rf"timeouts\.{name}: expected seconds"):
                Timeouts(**{name: bad})
    for bad in ({"max_connections": 0}, {"max_idle": -1}, {"idle_expiry_s": 0}):
        with pytest.raises(ConfigError):
            ClientConfig(**bad)


@on_both_loops
def test_limits_can_be_lifted(run):
    async def main():
        endless = Timeouts(connect_s=float("inf"), first_byte_s=float("inf"), idle_s=float("inf"), total_s=float("inf"))
        async with client_of(scenarios()["slow_first_byte"]) as (client, upstream):
            assert await (await post(client, upstream, timeouts=endless)).read() == chat_body()

    run(main)


# limits in size


@on_both_loops
def test_headers_are_limited(run):
    def with_header(size):
        return reply(b"ok", headers=[(b"x-long", b"v" * size)])

    endless = [b"HTTP/1.1 200 OK\r\nx-endless: "] + [b"v" * 10_000] * 20 + [End.STALL]
    trailers = [stream([])[0] + chunk(b"x") + b"0\r\nx-endless: "] + [b"v" * 10_000] * 20 + [End.STALL]

    async def main():
        async with client_of(with_header(60_000), with_header(MAX_HEAD), endless, trailers) as (client, upstream):
            assert await (await post(client, upstream)).read() == b"ok"
            for _ in range(2):
                with pytest.raises(UpstreamError, match="65536 bytes") as caught:
                    await post(client, upstream)
                assert caught.value.kind == "protocol"
            assert await collect(await post(client, upstream)) == ([b"x"], "protocol")

    run(main)


@on_both_loops
def test_a_stream_that_nobody_reads_holds_the_upstream_back(run):
    block, count = chunk(b"b" * 65_536), 800

    def fifty_megabytes(seen):
        yield stream([])[0]
        for _ in range(count):
            yield block
        yield chunk(b"")

    async def main():
        async with client_of(fifty_megabytes) as (client, upstream):
            answer = await post(client, upstream)
            sent = -1
            while sent != upstream.seen[0].sent:  # until it stands still
                sent = upstream.seen[0].sent
                await asyncio.sleep(0.1)
            assert sent < 25_000_000  # what fits into the sockets, not the whole
            assert answer._size < 1_000_000
            assert sum([len(piece) async for piece in answer.chunks()]) == count * 65_536

    run(main)


# giving up


@on_both_loops
@pytest.mark.parametrize("phase", ["send", "read", "chunks", "close", "close while reading"])
def test_giving_up_reaches_the_upstream(run, phase):
    script = [End.STALL] if phase == "send" else [stream([])[0], chunk(b"x"), End.STALL]

    async def main():
        async with client_of(script) as (client, upstream):

            async def work():
                answer = await post(client, upstream)
                holder.append(answer)
                if phase == "read":
                    await answer.read()
                elif phase in ("chunks", "close while reading"):
                    return await collect(answer)

            holder = []
            task = asyncio.create_task(work())
            await upstream.until(lambda: upstream.seen)
            await asyncio.sleep(0.05)
            given_up = time.monotonic()
            if phase.startswith("close"):
                await holder[0].close()
                await holder[0].close()
                result = await task
                assert result == (([b"x"], "cut") if phase == "close while reading" else None)
                assert (await collect(holder[0])) == ([], "cut")
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.wait_for(upstream.seen[0].over.wait(), 5)
            assert upstream.seen[0].left_at - given_up < 1.0  # 50 ms are the aim; benches/bench_transport.py measures

    run(main)
