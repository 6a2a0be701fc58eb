"""Splicing keeps every other byte."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_the_view_reads_what_it_needs_and_refuses_wrong_types():
    view = read_view(b'{"model":"m","messages":[],"stream":true,"max_tokens":5,"max_completion_tokens":9,"other":{}}')
    assert (view.model, view.stream, view.max_output) == ("m", True, 9)
    with pytest.raises(msgspec.ValidationError, match="model"):
        read_view(b'{"model":5}')
