"""A model's speed is what its server timed."""

from __future__ import annotations

import asyncio
import json

import pytest

from polyroute.errors import UpstreamError
from polyroute.gateway.backends.canned import CannedReply
from polyroute.gateway.backends.speed import Speed, measure_speed

TIMINGS = {"prompt_n": 411, "prompt_per_second": 58.5, "predicted_n": 64, "predicted_per_second": 20.25}


class Answering:
    """A backend that answers every request with one value and keeps the requests."""

    id = "toy"

    def __init__(self, value):
        self.value, self.requests = value, []

    async def send(self, path, headers, body, timeouts):
        self.requests.append((path, json.loads(body)))
        return CannedReply(200, [], [json.dumps(self.value).encode()])


def test_the_servers_timings_are_the_speed():
    backend = Answering({"timings": TIMINGS})
    assert asyncio.run(measure_speed(backend)) == Speed(58.5, 20.25, 411, 64)
    asyncio.run(measure_speed(backend, seed=1))
    (path, first), (_, second) = backend.requests
    assert (path, first["max_tokens"]) == ("/v1/chat/completions", 64)
    prompts = [request["messages"][0]["content"] for request in (first, second)]
    assert prompts[0][:6] != prompts[1][:6]  # no common beginning that a cache could keep


@pytest.mark.parametrize("value", [{}, {"timings": None}, [], {"timings": {"prompt_n": 1}}])
def test_a_server_without_timings_is_an_error(value):
    with pytest.raises(UpstreamError, match="expected an answer with timings"):
        asyncio.run(measure_speed(Answering(value)))
