"""Shared by the tests of the upstream client: both event loops, a client beside a scripted upstream, one call."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("httptools", reason="needs httptools: pip install 'polyroute[gateway]'")
uvloop = pytest.importorskip("uvloop", reason="needs uvloop: pip install 'polyroute[gateway]'")

from polyroute.errors import UpstreamError  # noqa: E402
from polyroute.gateway.client import Client, ClientConfig  # noqa: E402
from polyroute.gateway.scripted import ScriptedUpstream  # noqa: E402
from polyroute.gateway.transport import Timeouts  # noqa: E402

HEADERS = [(b"Content-Type", b"application/json"), (b"X-Trace", b"a"), (b"accept", b"*/*"), (b"x-trace", b"b")]
PATIENT = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, total_s=10)


def runner_of(loop):
    """A function that runs a coroutine function on a fresh loop; a task or socket left behind is an error."""

    async def checked(main):
        await main()
        assert not asyncio.all_tasks() - {asyncio.current_task()}

    def run(main):
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(checked(main))
        gc.collect()  # an unclosed socket warns here, and warnings are errors

    return run


on_both_loops = pytest.mark.parametrize("run", [runner_of("asyncio"), runner_of("uvloop")], ids=["asyncio", "uvloop"])


@asynccontextmanager
async def client_of(*scripts, tls=None, **config):
    async with ScriptedUpstream(*scripts, tls=tls) as upstream:
        client = Client(ClientConfig(**config))
        try:
            yield client, upstream
        finally:
            await client.close()


async def post(client, upstream, body=b"{}", timeouts=PATIENT, path="/v1/chat/completions", headers=HEADERS):
    return await client.send("POST", upstream.url + path, headers, body, timeouts)


async def collect(answer):
    """The pieces of a body, and the kind of error that ended it."""
    pieces = []
    try:
        async for piece in answer.chunks():
            pieces.append(piece)
    except UpstreamError as error:
        return pieces, error.kind
    return pieces, None
