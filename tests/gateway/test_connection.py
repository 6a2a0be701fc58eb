"""One connection, fed bytes by hand."""

from __future__ import annotations

import asyncio

import pytest

from upstream_calls import PATIENT, client_of, collect, on_both_loops, post  # isort: skip
from polyroute.errors import UpstreamError
from polyroute.gateway.client import ClientConfig, OriginPool
from polyroute.gateway.connection import Connection
from polyroute.gateway.dial import Origin
from polyroute.gateway.scripted import chunk, head, reply, scenarios, stream


class FakeSocket:
    """A transport that delivers what it is told to."""

    def __init__(self):
        self.closing = False

    def write(self, data): ...
    def abort(self):
        self.closing = True

    def is_closing(self):
        return self.closing

    def pause_reading(self): ...
    def resume_reading(self): ...


async def fed(parts, reset=True):
    """What a connection makes of bytes that arrive in `parts` before it is lost: pieces and the kind of error."""
    pool = OriginPool(Origin("http", "upstream.test", 80), ClientConfig())
    connection = Connection(pool, "upstream.test")
    connection.connection_made(FakeSocket())
    exchange = asyncio.ensure_future(connection.exchange(b"POST / HTTP/1.1\r\n\r\n", b"", PATIENT, float("inf")))
    await asyncio.sleep(0)
    for part in parts:
        connection.data_received(part)
    connection.connection_lost(ConnectionResetError() if reset else None)
    try:
        answer = await exchange
    except UpstreamError as error:
        return [], error.kind
    return await collect(answer)


@pytest.mark.parametrize("name", ["json", "json_chunked", "stream", "429_retry_after"])
def test_a_cut_at_any_byte_is_seen_and_what_came_before_is_a_prefix(name):
    wire = b"".join(step for step in scenarios()[name] if isinstance(step, bytes))

    async def main():
        whole, kind = await fed([wire])
        assert kind is None
        for at in range(len(wire)):
            for reset in (True, False):
                pieces, kind = await fed([wire[:at]], reset)
                assert kind == "cut", at
                assert b"".join(whole).startswith(b"".join(pieces))

    asyncio.run(main())


def test_however_the_wire_is_sliced_the_bytes_are_the_same_and_no_piece_spans_two_chunks():
    words = [b"one", "zwölf".encode(), b"data: {}\n\n", b"\r\n\r\n", b"0"]
    wire = stream([])[0] + b"".join(map(chunk, words)) + chunk(b"")
    ends = {sum(map(len, words[: i + 1])) for i in range(len(words))}

    async def main():
        assert await fed([wire]) == (words, None)
        for size in range(1, 40):
            pieces, kind = await fed([wire[i : i + size] for i in range(0, len(wire), size)])
            assert (b"".join(pieces), kind) == (b"".join(words), None)
            reached = {sum(map(len, pieces[: i + 1])) for i in range(len(pieces))}
            assert ends <= reached  # each end of a chunk is the end of a piece

    asyncio.run(main())


def test_a_body_until_close_is_whole_after_a_fin_and_cut_after_a_reset():
    async def main():
        assert await fed([head() + b"all"], reset=False) == ([b"all"], None)
        assert await fed([head() + b"all"], reset=True) == ([b"all"], "cut")

    asyncio.run(main())


@on_both_loops
def test_limits_cost_no_timer_per_request(run, monkeypatch):
    armed = []
    arm = Connection._arm

    def counted(self, due):
        armed.append(due)
        arm(self, due)

    monkeypatch.setattr(Connection, "_arm", counted)

    async def main():
        async with client_of(reply(b"ok")) as (client, upstream):
            for _ in range(50):
                await (await post(client, upstream)).read()
        assert 1 <= len(armed) <= 2

    run(main)
