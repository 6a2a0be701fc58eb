"""Splicing keeps every other byte; a watched stream loses nothing but what the gateway itself asked for."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.gateway.events import EVENT_END, Stream, event_ends, finish_given
from polyroute.gateway.headers import downstream_headers, one_line, upstream_headers
from polyroute.gateway.wire import ask_for_usage, drop_field, fields, read_view, replace_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(
    before=st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    after=st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_only_the_model_changes_whatever_stands_around_it(before, after, ascii_only, indent):
    request = {**before, "model": "auto", **{k: v for k, v in after.items() if k != "model"}}
    request["model"] = "auto"
    body = json.dumps(request, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # lone surrogates are no JSON text
    spliced = replace_model(body, 'a "quoted" name')
    assert json.loads(spliced) == {**json.loads(body), "model": 'a "quoted" name'}
    assert replace_model(spliced, "auto") == body.replace(json.dumps("auto").encode(), b'"auto"')


def test_a_nested_model_field_is_left_alone():
    body = b'{"metadata": {"model": "x"}, "model" : "auto", "tools":[{"model":"auto"}]}'
    assert replace_model(body, "m") == b'{"metadata": {"model": "x"}, "model" : "m", "tools":[{"model":"auto"}]}'


def test_an_escaped_key_is_still_the_model():
    body = b'{"mode\\u006c":"auto","messages":[{"role":"user","content":"\\"model\\": \\"auto\\""}]}'
    assert json.loads(replace_model(body, "m"))["model"] == "m"
    assert json.loads(replace_model(body, "m"))["messages"] == json.loads(body)["messages"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true}',
        b"{}",
        b'{ "stream_options": null, "model": "m"}',
        b'{"stream_options":{"include_obfuscation":false},"model":"m"}',
        b'{"messages":[{"content":"stream_options"}],"model":"m"}',
    ],
)
def test_usage_is_asked_for_and_nothing_else_changes(body):
    asked = json.loads(ask_for_usage(body))
    assert asked["stream_options"]["include_usage"] is True
    kept = json.loads(body)
    options = kept.pop("stream_options", None) or {}
    assert asked.pop("stream_options") == {**options, "include_usage": True}
    assert asked == kept


@pytest.mark.parametrize("body", [b'{"a":1,"usage":{"x":[1,2]},"b":2}', b'{"usage":null}', b'{"a":1 , "usage" : 5 }'])
def test_a_dropped_field_leaves_the_rest(body):
    kept = json.loads(body)
    kept.pop("usage")
    assert json.loads(drop_field(body, "usage")) == kept


def test_fields_give_the_spans_of_top_level_values():
    body = b' {"a" : [1, {"b": "}"}] ,"c":"\\"," }'
    spans = fields(body)
    values = {name: body[start:end] for name, (_, start, end) in spans.items()}
    assert values == {"a": b'[1, {"b": "}"}]', "c": b'"\\","'}


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


def test_credentials_and_hop_headers_go_no_further():
    sent = [
        (b"host", b"x"), (b"authorization", b"Bearer s"), (b"x-api-key", b"s"), (b"cookie", b"a=b"),
        (b"content-type", b"application/json"), (b"openai-beta", b"v"), (b"x-polyroute-policy", b"p"),
        (b"accept-encoding", b"gzip"), (b"connection", b"keep-alive"), (b"transfer-encoding", b"chunked"),
    ]  # fmt: skip
    kept = upstream_headers(sent)
    assert kept == ((b"content-type", b"application/json"), (b"openai-beta", b"v"), (b"accept-encoding", b"identity"))
    other = [(k, b"Bearer t") if k == b"authorization" else (k, v) for k, v in sent]
    assert upstream_headers(other) is kept  # what is remembered knows nothing of credentials
    back = [(b"set-cookie", b"a"), (b"x-ratelimit-remaining", b"3"), (b"connection", b"close"), (b"server", b"x")]
    assert downstream_headers(back) == [(b"x-ratelimit-remaining", b"3")]


def test_a_header_value_cannot_end_its_line():
    assert one_line("one\r\nx-b: two\u20ac") == b"one??x-b: two?"
    assert one_line("plain") == b"plain"
    assert len(one_line("x" * 9000)) == 4000


def test_the_view_reads_what_it_needs_and_refuses_wrong_types():
    view = read_view(b'{"model":"m","messages":[],"stream":true,"max_tokens":5,"max_completion_tokens":9,"other":{}}')
    assert (view.model, view.stream, view.max_output) == ("m", True, 9)
    with pytest.raises(msgspec.ValidationError, match="model"):
        read_view(b'{"model":5}')
