"""The smallest instruct model, really run: skipped where its file is not here (`polyroute models pull`)."""

from __future__ import annotations

import asyncio
import json
import math
import os

import pytest

from polyroute.data.catalogue import catalogue
from polyroute.gateway.backends.local import LocalBackend, LocalSettings
from polyroute.gateway.client import Client
from polyroute.gateway.transport import Timeouts
from polyroute.pull import held, model_path, models_folder

MODEL = catalogue().local_model("qwen2.5-coder-0.5b")
FOLDER = models_folder(os.environ)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        held(MODEL, FOLDER).state != "ready",
        reason=f"{MODEL.file} is not in {FOLDER}; run: polyroute models pull {MODEL.id}",
    ),
]


def body(text: str, **more) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": MODEL.id, "messages": messages, "temperature": 0, **more}).encode()


def test_a_local_model_answers_streams_counts_and_keeps_its_context(tmp_path):
    async def ask(backend, question, **more):
        headers = [(b"content-type", b"application/json")]
        reply = await backend.send("/v1/chat/completions", headers, body(question, **more), Timeouts())
        return reply.status, await reply.read()

    async def go():
        client = Client()
        file = model_path(MODEL, FOLDER)
        settings = LocalSettings(slots=2, context=256)
        backend = LocalBackend("small", file, client, settings, pull_name=MODEL.id, log_folder=tmp_path)
        try:
            question = "What is the capital of France? One word."
            plain, streamed = await asyncio.gather(
                ask(backend, question, max_tokens=8, logprobs=True, top_logprobs=2),
                ask(backend, question, max_tokens=8, stream=True, stream_options={"include_usage": True}),
            )
            fits = await ask(backend, "word " * 180, max_tokens=1)
            too_long = await ask(backend, "word " * 300, max_tokens=1)
            return plain, streamed, fits, too_long
        finally:
            await backend.close()
            await client.close()

    plain, streamed, fits, too_long = asyncio.run(go())
    answer = json.loads(plain[1])
    assert plain[0] == 200
    assert answer["model"] == "small"
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
    best = answer["choices"][0]["logprobs"]["content"][0]
    assert math.exp(best["logprob"]) <= 1
    assert len(best["top_logprobs"]) == 2
    events = [json.loads(e[6:]) for e in streamed[1].decode().split("\n\n") if e.startswith("data: {")]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert "Paris" in text
    assert events[-1]["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert streamed[1].endswith(b"data: [DONE]\n\n")
    assert fits[0] == 200  # more than half of all slots' tokens: the context is per request
    assert too_long[0] == 400
    assert "context" in json.loads(too_long[1])["error"]["message"]
