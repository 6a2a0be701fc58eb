"""How fast a local model is on this machine; its price follows from that."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from polyroute.errors import UpstreamError
from polyroute.gateway.backends.status import Backend
from polyroute.gateway.transport import Timeouts

PATIENT = Timeouts(first_byte_s=600.0, idle_s=600.0, total_s=1200.0)
PROMPT_WORDS, COMPLETION_TOKENS = 400, 64


class Speed(NamedTuple):
    """Tokens per second of one request alone, as the server itself timed it."""

    prefill: float
    generate: float
    prompt_tokens: int
    completion_tokens: int


async def measure_speed(backend: Backend, *, seed: int = 0) -> Speed:
    """Send one request of about 450 prompt tokens and 64 of completion to a llama.cpp server.

    seed: another one makes another prompt, so that no cache of prompts helps. Raises: UpstreamError (protocol) where
    the server does not tell its timings.
    """
    words = " ".join(f"item{(seed * 7919 + i * 31) % 97}" for i in range(PROMPT_WORDS // 3))
    content = f"Run {seed}. Write a long story about these things: {words}"
    request = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": COMPLETION_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    headers = [(b"content-type", b"application/json")]
    reply = await backend.send("/v1/chat/completions", headers, msgspec.json.encode(request), PATIENT)
    data = await reply.read()
    try:
        timings = msgspec.json.decode(data)["timings"]
        return Speed(
            float(timings["prompt_per_second"]),
            float(timings["predicted_per_second"]),
            int(timings["prompt_n"]),
            int(timings["predicted_n"]),
        )
    except (msgspec.MsgspecError, KeyError, TypeError) as problem:
        raise UpstreamError(
            "protocol", f"{backend.id}: expected an answer with timings, got {data[:200]!r}"
        ) from problem
