"""A watched stream loses nothing but what the gateway itself asked for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.gateway.events import EVENT_END, Stream, event_ends, finish_given


def chunk(content: str, **extra: object) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice], **extra}).encode() + b"\n\n"


@given(st.lists(st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\r", b"data: {}", b"x", b""]), max_size=12).map(b"".join))
def test_events_end_where_the_pattern_says(text: bytes) -> None:
    assert event_ends(text) == [end.end() for end in EVENT_END.finditer(text)]
    unix = text.replace(b"\r", b"")
    assert event_ends(unix) == [end.end() for end in EVENT_END.finditer(unix)]


@pytest.mark.parametrize(
    ("reasons", "ended"),
    [([None], False), ([None, None], False), (["stop"], True), ([None, "length"], True), (["stop", None], True)],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_finish_reason_of_any_choice_counts(reasons, ended, separators) -> None:
    choices = [{"index": i, "delta": {}, "finish_reason": reason} for i, reason in enumerate(reasons)]
    event = b"data: " + json.dumps({"choices": choices}, separators=separators).encode() + b"\n\n"
    assert finish_given(event) is ended


FINAL = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
USAGE = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":1}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def cut_up(text: bytes, sizes: list[int]) -> list[bytes]:
    out, at = [], 0
    for size in sizes:
        out.append(text[at : at + size])
        at += size
    return [*out, text[at:]]


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), max_size=20), words=st.lists(st.text(max_size=6), max_size=5))
def test_a_watched_stream_is_forwarded_byte_for_byte_however_it_is_cut(sizes, words):
    words = [w.encode("utf-8", "replace").decode() for w in words]
    text = b"".join(chunk(w) for w in words) + b": comment\n" + FINAL + USAGE + DONE
    stream = Stream(hide_usage=False)
    out = b"".join(stream.feed(part) for part in cut_up(text, sizes)) + stream.flush()
    assert out == text
    assert stream.done
    assert stream.finished
    assert not stream.failed
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens, stream.usage.cached_tokens) == (3, 2, 1)


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), max_size=20))
def test_usage_the_client_did_not_ask_for_is_hidden(sizes):
    asked = chunk("a", usage=None) + chunk('say "usage":null twice', usage=None) + FINAL + USAGE + DONE
    plain = chunk("a") + chunk('say "usage":null twice') + FINAL.replace(b',"usage":null', b"") + DONE
    stream = Stream(hide_usage=True)
    out = b"".join(stream.feed(part) for part in cut_up(asked, sizes)) + stream.flush()
    events = [json.loads(e[6:]) for e in out.split(b"\n\n")[:-2]]
    assert events == [json.loads(e[6:]) for e in plain.split(b"\n\n")[:-2]]
    assert out.endswith(DONE)
    assert stream.usage is not None
    assert stream.usage.prompt_tokens == 3


def test_usage_on_a_chunk_with_choices_is_read_and_only_the_usage_is_hidden():
    usage = b'"usage":{"prompt_tokens":7,"completion_tokens":9}'
    last = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],' + usage + b"}\n\n"
    stream = Stream(hide_usage=True)
    out = stream.feed(last)
    assert json.loads(out[6:]) == {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 9
    assert stream.finished


def test_an_error_event_is_noticed_and_forwarded():
    event = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
    stream = Stream(hide_usage=True)
    assert stream.feed(event) == event
    assert stream.failed


def test_garbage_passes_and_is_no_end():
    stream = Stream(hide_usage=True)
    garbage = b'data: {not json "usage"}\n\nhello\n\n'
    assert stream.feed(garbage) + stream.flush() == garbage
    assert not stream.done
    assert not stream.finished


@pytest.mark.parametrize(
    "before", [b": keep-alive\n", b":\n", b"id: 7\n", b"event: message\r\n", b": metadata: no\n", b""]
)
def test_what_stands_before_an_events_data_hides_nothing_from_the_accountant(before) -> None:
    stream = Stream(hide_usage=True)
    shown = b"".join(
        stream.feed(before + event) for event in (chunk("a", usage=None), FINAL, USAGE, b"data: [DONE]\n\n")
    )
    stream.flush()
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 2)
    assert (stream.finished, stream.done) == (True, True)
    assert b"usage" not in shown  # a client that did not ask may index choices[0] of every chunk
    assert shown.count(before + b"data:") == 3
