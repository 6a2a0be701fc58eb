"""Clients of other makes, each in an environment of its own: through the gateway they see what they see without it."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyroute.gateway.scripted import Seen, Step, reply, stream
from tests.gateway.foreign_client import FAMILIES
from tests.gateway.live import serving

CLIENT = Path(__file__).parent / "foreign_client.py"
ALSO = {"litellm": ("mcp",)}  # which its tool calls import
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
VALUES = {"string": "Oslo", "integer": 7}


def filled(schema: dict[str, Any]) -> str:
    """Arguments that fit a flat schema, as JSON."""
    return json.dumps({name: VALUES[about["type"]] for name, about in schema["properties"].items()})


def answered(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A message and its finish reason: a tool call where tools are offered and not answered yet, else text."""
    if request.get("tools") and request["messages"][-1]["role"] != "tool":
        told = request["tools"][0]["function"]
        call = {"name": told["name"], "arguments": filled(told["parameters"])}
        return {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}, "tool_calls"
    form = request.get("response_format", {})
    return {"content": filled(form["json_schema"]["schema"]) if form else "Grüße, 世界"}, "stop"


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same message as a stream tells it, few characters at a time."""
    yield {"role": "assistant", "content": None if "tool_calls" in message else ""}
    for i, call in enumerate(message.get("tool_calls", [])):
        whole = call["function"]["arguments"]
        yield {"tool_calls": [{**call, "index": i, "function": {**call["function"], "arguments": ""}}]}
        for at in range(0, len(whole), 4):
            yield {"tool_calls": [{"index": i, "function": {"arguments": whole[at : at + 4]}}]}
    whole = message["content"] or ""
    for at in range(0, len(whole), 3):
        yield {"content": whole[at : at + 3]}


def server(seen: Seen) -> list[Step]:
    """What a good server answers, by what is asked."""
    request = json.loads(seen.body)
    base = {"id": "chatcmpl-1", "created": 1700000000, "model": request["model"]}
    if "messages" not in request:
        vector = {"object": "embedding", "index": 0, "embedding": "AAAAPwAAgL4="}  # base64, as SDKs ask for it
        return reply(json.dumps({"object": "list", "data": [vector], "model": "small", "usage": USAGE}).encode())
    message, reason = answered(request)
    if not request.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        body = {**base, "object": "chat.completion", "choices": [choice], "usage": USAGE}
        return reply(json.dumps(body, ensure_ascii=False).encode())
    asked = bool((request.get("stream_options") or {}).get("include_usage"))
    parts = [*((delta, None) for delta in deltas(message)), ({}, reason)]
    chunks: list[dict[str, Any]] = [
        {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": why}]}
        for delta, why in parts
    ]
    if asked:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
        chunks.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    return stream([*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"])


def seen_by(python: Path | str, family: str, url: str, model: str) -> dict[str, Any]:
    """What one client makes of the answers."""
    ran = subprocess.run(
        [str(python), str(CLIENT), family, url + "/v1", model], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_foreign_client_sees_no_gateway(tmp_path, family):
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", family, *ALSO.get(family, ())], check=True, timeout=600)
    with serving(tmp_path, {"small": server, "large": server}) as live:
        straight = seen_by(python, family, live.upstreams["small"].url, "small")
        assert "Grüße, 世界" in json.dumps(straight, ensure_ascii=False) or family == "instructor"
        assert "Oslo" in json.dumps(straight)
        assert seen_by(python, family, live.url, "small") == straight
        assert seen_by(python, family, live.url, "auto") == straight
