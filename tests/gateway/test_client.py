"""The pool: what is reused, what is repeated, what waits."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from upstream_calls import client_of, on_both_loops, post  # isort: skip
from polyroute.errors import UpstreamError
from polyroute.gateway import connection as connection_module
from polyroute.gateway.client import ClientConfig, OriginPool
from polyroute.gateway.dial import Origin
from polyroute.gateway.scripted import End, reply
from polyroute.gateway.transport import Timeouts


@on_both_loops
def test_cancelling_while_connecting_gives_the_place_back(run):
    async def main():
        async with client_of(reply(b"ok"), max_connections=1) as (client, upstream):
            task = asyncio.create_task(post(client, upstream))
            await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await (await task).close()
            assert await (await post(client, upstream)).read() == b"ok"

    run(main)


@on_both_loops
def test_closing_a_complete_answer_keeps_the_connection(run):
    async def main():
        async with client_of(reply(b"ok")) as (client, upstream):
            for _ in range(3):
                answer = await post(client, upstream)
                await answer.close()
            assert upstream.num_connections == 1

    run(main)


@on_both_loops
def test_closing_the_client_fails_what_is_under_way(run):
    async def main():
        async with client_of([End.STALL], max_connections=1) as (client, upstream):
            tasks = [asyncio.create_task(post(client, upstream)) for _ in range(2)]
            await upstream.until(lambda: upstream.seen)
            await client.close()
            for task in tasks:
                with pytest.raises(UpstreamError, match="client was closed") as caught:
                    await task
                assert caught.value.kind == "cut"
            with pytest.raises(UpstreamError, match="client is closed"):
                await post(client, upstream)
            await upstream.until(lambda: not upstream.connected)

    run(main)


@on_both_loops
def test_calls_in_turn_share_one_connection_and_calls_together_keep_the_limit(run):
    async def main():
        async with client_of(lambda seen: [0.001, *reply(seen.body)], max_connections=8) as (client, upstream):
            for _ in range(20):
                await (await post(client, upstream)).read()
            assert upstream.num_connections == 1

            async def one(i):
                assert await (await post(client, upstream, b"%d" % i)).read() == b"%d" % i

            await asyncio.gather(*(one(i) for i in range(200)))
            assert upstream.num_connections <= 8
            assert len(upstream.seen) == 220

    run(main)


@on_both_loops
def test_no_place_within_the_limit_is_busy_and_a_place_that_comes_free_is_given_on(run):
    async def main():
        async with client_of([End.STALL], reply(b"ok"), max_connections=1) as (client, upstream):
            first = asyncio.create_task(post(client, upstream))
            await upstream.until(lambda: upstream.seen)
            with pytest.raises(UpstreamError, match="one of 1 in use") as caught:
                await post(client, upstream, timeouts=Timeouts(connect_s=0.05))
            assert caught.value.kind == "busy"
            second = asyncio.create_task(post(client, upstream))
            await asyncio.sleep(0.01)
            first.cancel()
            assert await (await second).read() == b"ok"

    run(main)


@on_both_loops
@pytest.mark.parametrize(("kept", "config"), [(2, {"max_idle": 2}), (0, {"max_idle": 0}), (0, {"idle_expiry_s": 0.1})])
def test_idle_connections_are_few_and_expire(run, kept, config):
    async def main():
        async with client_of([0.02, *reply(b"ok")], **config) as (client, upstream):
            answers = await asyncio.gather(*(post(client, upstream) for _ in range(6)))
            assert [await answer.read() for answer in answers] == [b"ok"] * 6
            await upstream.until(lambda: len(upstream.connected) <= kept)
            await asyncio.sleep(0.02)
            assert len(upstream.connected) == kept

    run(main)


def test_a_connection_given_to_a_call_that_gave_up_is_given_on():
    class Kept:
        usable = True

        def rest(self, expiry_s): ...

    async def main():
        pool = OriginPool(Origin("http", "upstream.test", 80), ClientConfig(max_connections=1))
        assert await pool.place() is None  # the only place is taken
        first, second = (asyncio.create_task(pool.place()) for _ in range(2))
        await asyncio.sleep(0)
        kept = Kept()
        pool.released(kept)
        first.cancel()
        assert await second is kept
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


@on_both_loops
def test_when_one_kept_connection_is_stale_its_elders_are_not_tried(run):
    """As after a restart of the upstream: every kept connection is dead, and one repeat must do."""
    served = set()

    def script(seen):
        dead = seen.connection in served
        served.add(seen.connection)
        return [End.RST] if dead else [0.02, *reply(b"ok")]

    async def main():
        served.clear()
        async with client_of(script) as (client, upstream):
            for answer in await asyncio.gather(*(post(client, upstream) for _ in range(3))):
                await answer.read()
            assert await (await post(client, upstream)).read() == b"ok"
            assert len(upstream.seen) == 5

    run(main)


def lost_on_second_use(seen):
    """The first request of the first connection is served; its second meets a server that has closed."""
    first = seen.connection == 0
    lost_on_second_use.count += first
    return [End.RST] if first and lost_on_second_use.count % 2 == 0 else reply(b"ok")


@on_both_loops
def test_a_stale_connection_is_replaced_once_and_only_when_it_may_be(run, monkeypatch):
    async def main():
        lost_on_second_use.count = 0
        async with client_of(lost_on_second_use) as (client, upstream):
            assert await (await post(client, upstream)).read() == b"ok"
            assert await (await post(client, upstream)).read() == b"ok"
            assert [seen.connection for seen in upstream.seen] == [0, 0, 1]
        lost_on_second_use.count = 0
        with monkeypatch.context() as patch:
            patch.setattr(connection_module, "STALE_WITHIN_S", 0.0)  # as if the upstream had worked on it for long
            async with client_of(lost_on_second_use) as (client, upstream):
                await (await post(client, upstream)).read()
                with pytest.raises(UpstreamError, match="before the first byte"):
                    await post(client, upstream)
                assert len(upstream.seen) == 2

    run(main)


@on_both_loops
@pytest.mark.parametrize(
    ("scripts", "requests"),
    [
        ([[End.RST]], 1),  # a fresh connection
        ([reply(b"ok"), [b"HTTP/1.1 2", End.RST]], 2),  # something was answered
        ([reply(b"ok"), [End.RST], [End.RST]], 3),  # the repeat fails as well
    ],
)
def test_nothing_else_is_sent_twice(run, scripts, requests):
    async def main():
        async with client_of(*scripts) as (client, upstream):
            if len(scripts) > 1:
                await (await post(client, upstream)).read()
            with pytest.raises(UpstreamError) as caught:
                await post(client, upstream)
            assert caught.value.kind == "cut"
            assert len(upstream.seen) == requests

    run(main)


@on_both_loops
@pytest.mark.parametrize(
    "unasked", [reply(b"not yours")[0], b"HTTP/1.1 2", b"garbage", b"HTTP/1.1 408 Request Timeout\r\n\r\n"]
)
@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_bytes_nobody_asked_for_never_answer_the_next_request(run, unasked, pause):
    first = [*reply(b"one"), pause, unasked] if pause else [reply(b"one")[0] + unasked]

    async def main():
        async with client_of(first, reply(b"two")) as (client, upstream):
            assert await (await post(client, upstream)).read() == b"one"
            await asyncio.sleep(3 * pause)
            assert await (await post(client, upstream)).read() == b"two"
            assert [seen.connection for seen in upstream.seen] == [0, 1]

    run(main)
