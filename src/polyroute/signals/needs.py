"""The capabilities a chat request needs, read from its typed content and its settings; never from its words.

`constraints.offers_needs` holds them against what each candidate offers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polyroute.signals.conversation import LIST, OBJECT

# capability -> what in a request asks for it
CAPABILITIES: dict[str, str] = {
    "tools": "tools or functions are declared, or the conversation holds calls of them",
    "vision": "a part of type image_url, input_image or image",
    "audio": "a part of type input_audio or audio, or audio among the answer's modalities",
    "files": "a part of type file, input_file or document",
    "video": "a part of type video_url, input_video or video",
    "json": "a response_format of type json_schema or json_object",
    "logprobs": "log-probabilities are asked for",
}
PART_NEEDS: dict[str, str] = {
    "image_url": "vision",
    "input_image": "vision",
    "image": "vision",
    "input_audio": "audio",
    "audio_url": "audio",
    "audio": "audio",
    "file": "files",
    "input_file": "files",
    "document": "files",
    "video_url": "video",
    "input_video": "video",
    "video": "video",
    "tool_use": "tools",
    "tool_result": "tools",
    "function_call": "tools",
    "function_call_output": "tools",
}
DEPTH = 4  # how deep lists of parts nest: a tool result holds parts of its own


def needs_of(
    messages: object,
    *,
    tools: bool = False,
    response_format: object = None,
    logprobs: bool = False,
    modalities: object = (),
) -> frozenset[str]:
    """Capabilities, each one of CAPABILITIES, that a candidate must offer to take this request.

    messages: of a chat, decoded; a picture anywhere in it counts, since the whole conversation is sent. tools: are any
    declared? response_format: as sent, decoded or as JSON bytes. modalities: those asked for in the answer.
    Shapes nobody knows are ignored: the upstream judges them.
    """
    needs: set[str] = set()
    if tools:
        needs.add("tools")
    if logprobs:
        needs.add("logprobs")
    if modalities and isinstance(modalities, LIST) and "audio" in modalities:
        needs.add("audio")
    if format_type(response_format) in ("json_schema", "json_object"):
        needs.add("json")
    if isinstance(messages, LIST) and not isinstance(messages, (str, bytes)):
        for message in messages:
            if isinstance(message, OBJECT):
                read_message(message, needs)
    return frozenset(needs)


def needs_of_request(body: Mapping[str, Any]) -> frozenset[str]:
    """`needs_of` for a whole decoded request: chat completions, Messages or Responses."""
    text = body.get("text")
    wanted = body.get("response_format") or (text.get("format") if isinstance(text, OBJECT) else None)
    messages = body.get("messages")
    return needs_of(
        body.get("input") if messages is None else messages,
        tools=bool(body.get("tools") or body.get("functions")),
        response_format=wanted,
        logprobs=bool(body.get("logprobs") or body.get("top_logprobs")),
        modalities=body.get("modalities") or (),
    )


def read_message(message: Mapping[str, Any], needs: set[str]) -> None:
    """Add what one message needs."""
    if message.get("tool_calls") or message.get("function_call") or message.get("role") in ("tool", "function"):
        needs.add("tools")
    add_need(message.get("type"), needs)
    content = message.get("content")
    if not isinstance(content, str):
        read_parts(content, needs, DEPTH)


def read_parts(content: object, needs: set[str], depth: int) -> None:
    """Add what a list of typed parts needs, lists inside parts included."""
    if isinstance(content, OBJECT):
        content = [content]
    if depth == 0 or not isinstance(content, list | tuple):
        return
    for part in content:
        if isinstance(part, OBJECT):
            add_need(part.get("type"), needs)
            read_parts(part.get("content"), needs, depth - 1)


def add_need(part_type: object, needs: set[str]) -> None:
    if isinstance(part_type, str) and (need := PART_NEEDS.get(part_type)) is not None:
        needs.add(need)


def format_type(response_format: object) -> object:
    """The type of a response_format, decoded or not; None where there is none."""
    if response_format is None or isinstance(response_format, str):
        return response_format
    if not isinstance(response_format, OBJECT):
        try:
            data = bytes(memoryview(response_format))  # type: ignore[arg-type]  # any buffer: bytes or undecoded JSON
            response_format = json.loads(data) if data else None
        except (TypeError, ValueError):
            return None
    return response_format.get("type") if isinstance(response_format, OBJECT) else None
