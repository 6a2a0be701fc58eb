"""The scripted upstream, judged through plain sockets and http.client."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import time

import pytest

from upstream_calls import on_both_loops  # isort: skip
from polyroute.gateway.scripted import (
    End,
    ScriptedUpstream,
    chat_body,
    chat_events,
    chunk,
    cut,
    head,
    reply,
    resliced,
    scenarios,
    stream,
)

REQUEST = b"POST /v1?x=1 HTTP/1.1\r\nHost: a\r\nX-Mixed-CASE:  two  spaces\r\ncontent-length: 4\r\n\r\n\x00\xff{}"


async def dialled(upstream):
    return await asyncio.open_connection("127.0.0.1", int(upstream.url.rpartition(":")[2]))


async def everything(upstream, request=REQUEST):
    """All bytes of one answer until the connection ends, and whether it ended in a reset."""
    reader, writer = await dialled(upstream)
    writer.write(request)
    got, reset = b"", False
    try:
        while data := await asyncio.wait_for(reader.read(65536), 5):
            got += data
    except ConnectionResetError:
        reset = True
    writer.close()
    return got, reset


def wire(script):
    return b"".join(step for step in script if isinstance(step, bytes))


@on_both_loops
@pytest.mark.parametrize("how", [End.FIN, End.RST])
def test_an_answer_is_cut_at_exactly_the_byte_asked_for(run, how):
    flow = stream(chat_events(), 0.0)

    async def main():
        for at in (0, 1, 17, len(wire(flow)) - 1, len(wire(flow))):
            async with ScriptedUpstream(cut(flow, at, how)) as upstream:
                assert await everything(upstream) == (wire(flow)[:at], how is End.RST)
                assert upstream.seen[0].left_at is None

    run(main)


@on_both_loops
def test_requests_are_written_down_as_they_came(run):
    async def main():
        async with ScriptedUpstream(reply(b"ok")) as upstream:
            reader, writer = await dialled(upstream)
            for piece in resliced(REQUEST + REQUEST, 5):  # sliced anyhow, and the second before the first is answered
                writer.write(piece)
                await asyncio.sleep(0)
            await upstream.until(lambda: len(upstream.seen) == 2)
            for seen in upstream.seen:
                assert seen.head + seen.body == REQUEST
                assert seen.request_line == b"POST /v1?x=1 HTTP/1.1"
                assert seen.headers == [
                    (b"Host", b"a"), (b"X-Mixed-CASE", b"two  spaces"), (b"content-length", b"4")]  # fmt: skip
                assert (seen.connection, seen.body) == (0, b"\x00\xff{}")
            assert await reader.readexactly(2 * len(reply(b"ok")[0])) == reply(b"ok")[0] * 2
            writer.close()
            await upstream.until(lambda: not upstream.connected)
            assert upstream.num_connections == 1

    run(main)


@on_both_loops
@pytest.mark.parametrize("script", [[End.STALL], [head(), End.STALL], [head(), 30.0, b"never"]])
def test_the_moment_the_peer_leaves_is_written_down(run, script):
    async def main():
        async with ScriptedUpstream(script) as upstream:
            _, writer = await dialled(upstream)
            writer.write(REQUEST)
            await upstream.until(lambda: upstream.seen)
            await asyncio.sleep(0.02)
            seen, leaving = upstream.seen[0], time.monotonic()
            assert not seen.over.is_set()
            writer.close()
            await asyncio.wait_for(seen.over.wait(), 5)
            assert leaving <= seen.left_at <= time.monotonic()

    run(main)


@on_both_loops
def test_connections_made_together_have_numbers_of_their_own(run):
    async def main():
        async with ScriptedUpstream(reply(b"ok", framing="close")) as upstream:
            await asyncio.gather(*(everything(upstream) for _ in range(10)))
            assert sorted(seen.connection for seen in upstream.seen) == list(range(10))

    run(main)


@on_both_loops
def test_scripts_are_served_in_turn_and_may_be_functions(run):
    async def main():
        closing = REQUEST.replace(b"Host: a", b"Connection: close")
        scripts = [reply(b"1", framing="close"), lambda seen: [*reply(seen.body * 2), End.FIN]]
        async with ScriptedUpstream(*scripts) as upstream:
            got = [(await everything(upstream, closing))[0].rpartition(b"\r\n\r\n")[2] for _ in range(3)]
            assert got == [b"1", b"\x00\xff{}" * 2, b"\x00\xff{}" * 2]

    run(main)


def test_a_script_that_fails_fails_the_test():
    async def main():
        async with ScriptedUpstream(lambda seen: [1 // 0]) as upstream:
            _, writer = await dialled(upstream)
            writer.write(REQUEST)
            await upstream.until(lambda: upstream.seen)
            await asyncio.sleep(0.01)
            writer.close()

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


@on_both_loops
def test_silences_lie_between_the_events(run):
    async def main():
        async with ScriptedUpstream(stream([b"a", b"b"], 0.05)) as upstream:
            reader, writer = await dialled(upstream)
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            arrived = []
            for piece in (b"a", b"b"):
                assert await reader.readexactly(6) == chunk(piece)
                arrived.append(time.monotonic())
            assert arrived[1] - arrived[0] > 0.03
            writer.close()

    run(main)


@on_both_loops
def test_sent_counts_what_the_peer_lets_through(run):
    block = bytes(1_000_000)

    async def main():
        async with ScriptedUpstream([head(200, []), *[block] * 60, End.FIN]) as upstream:
            reader, writer = await dialled(upstream)
            writer.write(REQUEST)
            sent = -1
            while sent != (upstream.seen[0].sent if upstream.seen else 0):
                sent = upstream.seen[0].sent if upstream.seen else 0
                await asyncio.sleep(0.1)
            assert sent < 40_000_000
            while await reader.read(1 << 20):
                pass
            assert upstream.seen[0].sent == 60_000_000 + len(head(200, []))
            writer.close()

    run(main)


def outcome(url):
    """What http.client makes of an answer: (status, body) or the name of its error."""
    client = http.client.HTTPConnection(url.partition("//")[2], timeout=0.3)
    try:
        client.request("POST", "/", b"{}")
        answer = client.getresponse()
        return answer.status, answer.read()
    except (http.client.HTTPException, OSError) as error:
        return type(error).__name__, b""
    finally:
        client.close()


EVENTS = b"".join(chat_events())
EXPECTED = {
    "json": (200, chat_body()),
    "json_chunked": (200, chat_body()),
    "json_close": (200, chat_body()),
    "json_gzip": (200, gzip.compress(chat_body(), mtime=0)),
    "json_no_usage": (200, chat_body(usage=False)),
    "stream": (200, EVENTS),
    "stream_close": (200, EVENTS),
    "stream_split": (200, EVENTS),
    "stream_no_usage": (200, b"".join(chat_events(usage=False))),
    "slow_first_byte": (200, chat_body()),
    "html": (502, b"<!doctype html><title>502 Bad Gateway</title>"),
    "cut_rst": ("ConnectionResetError", b""),
    "cut_fin": ("IncompleteRead", b""),
    "stall": ("TimeoutError", b""),
    "silent": ("TimeoutError", b""),
    "closed_at_once": ("RemoteDisconnected", b""),
    "not_http": ("BadStatusLine", b""),
}


@pytest.mark.parametrize("name", scenarios())
def test_scenarios_are_what_their_names_say(name):
    async def main():
        async with ScriptedUpstream(scenarios(0.001)[name]) as upstream:
            return await asyncio.to_thread(outcome, upstream.url)

    status, body = asyncio.run(main())
    if name in EXPECTED:
        assert (status, body) == EXPECTED[name]
    elif name in ("429", "429_retry_after", "500"):
        assert status == int(name[:3])
        assert json.loads(body)["error"]["message"]
        assert (b"retry-after: 1\r\n" in wire(scenarios()[name])) == (name == "429_retry_after")
    elif name == "json_error_200":
        assert status == 200
        assert "error" in json.loads(body)
    else:
        assert status == 200
        assert {
            "stream_error": body.endswith(b"}}\n\n") and b'"error"' in body,
            "stream_garbage": b"\xff\xfe" in body and b"[DONE]" not in body,
            "stream_no_end": body == b"".join(chat_events()[:2]),
            "stream_duplicate_tool": body.count(b'"tool_calls": [{"index": 0') == 2,
        }[name]


def test_slices_split_characters():
    pieces = [step for step in scenarios()["stream_split"] if isinstance(step, bytes)]
    with pytest.raises(UnicodeDecodeError):
        [piece.decode() for piece in pieces]


def test_usage_is_there_when_wanted():
    assert json.loads(chat_body())["usage"]["total_tokens"] == 12
    assert "usage" not in json.loads(chat_body(usage=False))
    assert sum(b'"usage"' in event for event in chat_events()) == 1
    assert not any(b'"usage"' in event for event in chat_events(usage=False))
