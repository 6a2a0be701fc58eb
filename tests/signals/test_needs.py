"""Capabilities read from typed content."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.signals.needs import CAPABILITIES, PART_NEEDS, needs_of, needs_of_request


def parts(*types):
    return [{"role": "user", "content": [{"type": kind} for kind in types]}]


def test_plain_talk_needs_nothing():
    words = "Please call the tool, look at the image, answer in JSON and give logprobs."
    assert needs_of([{"role": "system", "content": words}, {"role": "user", "content": words}]) == frozenset()
    assert needs_of(parts("text", "input_text")) == frozenset()


@pytest.mark.parametrize(("part", "need"), sorted(PART_NEEDS.items()))
def test_each_part_has_its_need(part, need):
    assert needs_of(parts("text", part)) == {need}
    assert need in CAPABILITIES


def test_a_picture_anywhere_in_the_conversation_counts():
    history = [*parts("image_url"), {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
    assert needs_of(history) == {"vision"}


def test_a_picture_inside_a_tool_result_counts():
    result = {"type": "tool_result", "content": [{"type": "image", "source": {}}]}
    assert needs_of([{"role": "user", "content": [result]}]) == {"tools", "vision"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "function_call": {"name": "f"}},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"type": "function_call_output", "output": "42"},
    ],
)
def test_calls_in_the_history_need_tools(message):
    assert needs_of([message]) == {"tools"}


def test_settings():
    assert needs_of([], tools=True) == {"tools"}
    assert needs_of([], logprobs=True) == {"logprobs"}
    assert needs_of([], modalities=["text", "audio"]) == {"audio"}


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_a_response_format_decoded_or_not(kind):
    wanted = {"type": kind, "json_schema": {"schema": {}}}
    encoded = json.dumps(wanted).encode()
    for form in (wanted, encoded, bytearray(encoded), memoryview(encoded)):
        assert needs_of([], response_format=form) == {"json"}


@pytest.mark.parametrize(
    "form", [None, b"", b"null", b"{", b"[1]", {"type": "text"}, b'{"type": "text"}', 5, "text", {}]
)
def test_other_response_formats_need_nothing(form):
    assert needs_of([], response_format=form) == frozenset()


def test_whole_requests_of_each_protocol():
    chat = {"messages": parts("image_url"), "tools": [{}], "response_format": {"type": "json_schema"}, "logprobs": True}
    assert needs_of_request(chat) == {"vision", "tools", "json", "logprobs"}
    responses = {"input": parts("input_image"), "text": {"format": {"type": "json_schema"}}}
    assert needs_of_request(responses) == {"vision", "json"}
    assert needs_of_request({"input": "just text"}) == frozenset()
    assert needs_of_request({"messages": parts("image", "document"), "tools": []}) == {"vision", "files"}
    assert needs_of_request({}) == frozenset()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(PART_NEEDS)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "tool_calls"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=80, deadline=None)
@given(JSON, JSON, JSON)
def test_nothing_fails(messages, response_format, modalities):
    assert needs_of(messages, response_format=response_format, modalities=modalities) <= set(CAPABILITIES)
