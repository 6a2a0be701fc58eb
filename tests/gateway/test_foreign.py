"""What clients of other makes do on the wire that the official SDK does not: each worked straight at a backend."""

from __future__ import annotations

import gzip
import json
import socket

import pytest

from polyroute.gateway.headers import upstream_query
from polyroute.gateway.scripted import JSON, chat_body, cut, error_body, reply, stream
from tests.gateway.live import serving
from tests.gateway.test_app import as_asked, error_of

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("foreign"), {"small": as_asked, "org/large": as_asked}) as it:
        yield it


def raw(live, data: bytes) -> bytes:
    """All that comes back for these bytes until the gateway hangs up."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/org%2Flarge", "/", "/metrics"])
def test_what_can_be_fetched_can_be_asked_for_its_head(live, path):
    answer, body = live.call("HEAD", path)
    assert (answer.status, body) == (200, b"")
    assert int(answer.getheader("content-length")) > 0


def test_a_head_leaves_the_connection_in_step(live):
    ask = b"%b HTTP/1.1\r\nhost: x\r\n"
    told = raw(live, ask % b"HEAD /v1/models" + b"\r\n" + ask % b"GET /health" + b"connection: close\r\n\r\n")
    first, _, second = told.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("method", "path", "allow"), [
    ("HEAD", CHAT, "POST"), ("GET", CHAT, "POST"), ("DELETE", "/v1/models/small", "GET, HEAD"),
])  # fmt: skip
def test_a_wrong_method_is_told_the_right_ones(live, method, path, allow):
    answer, _ = live.call(method, path)
    assert (answer.status, answer.getheader("allow")) == (405, allow)


def test_a_slash_at_the_end_is_no_other_endpoint(live):
    answer, body = live.call("POST", CHAT + "/", {"model": "small", "messages": []})
    assert (answer.status, body) == (200, chat_body())
    assert live.upstreams["small"].seen[-1].request_line == b"POST /v1/chat/completions HTTP/1.1"
    answer, body = live.call("GET", "/v1/models/")
    assert json.loads(body)["object"] == "list"


@pytest.mark.parametrize(("path", "meant"), [
    ("/chat/completions", CHAT), ("/v1/v1/chat/completions", CHAT), ("//v1/chat/completions", CHAT),
    ("/v1/nothing", None), ("/v1", None), ("//", None),
])  # fmt: skip
def test_a_wrong_base_url_is_named(live, path, meant):
    answer, body = live.call("POST", path, {})
    assert answer.status == 404
    assert (f"did you mean '{meant}'" in error_of(body)["message"]) == (meant is not None)


def test_a_query_string_reaches_the_backend_without_credentials(live):
    body = {"model": "small", "messages": []}
    answer, _ = live.call("POST", CHAT + "?api-version=2024-10-21&key=secret&x=%C3%A9", body)
    assert answer.status == 200
    line = live.upstreams["small"].seen[-1].request_line
    assert line == b"POST /v1/chat/completions?api-version=2024-10-21&x=%C3%A9 HTTP/1.1"


@pytest.mark.parametrize(("query", "sent"), [
    (b"", ""), (b"a", "?a="), (b"a=b c", "?a=b+c"), (b"a=\xff", "?a=%C3%BF"), (b"API_KEY=1", ""), (b"&&", ""),
    (b"a=1#b", "?a=1%23b"), (b"a=%0d%0ax", "?a=%0D%0Ax"),
])  # fmt: skip
def test_queries_are_written_so_that_they_stay_one_line(query, sent):
    assert upstream_query(query) == sent


def test_a_limit_may_be_written_as_a_float(live):
    sent = b'{"model": "small", "max_tokens": 64.0, "max_completion_tokens": 1e3, "messages": []}'
    answer, _ = live.call("POST", CHAT, sent)
    assert answer.status == 200
    assert live.upstreams["small"].seen[-1].body == sent  # as it came
    for limit in (64.0, 1e300, -1, 0):
        assert live.chat("auto", max_tokens=limit)[0].status in (200, 400)
    assert live.chat("auto", max_tokens=64.5)[0].status == 200  # the backend's to judge


def test_a_compressed_request_is_told_what_is_wrong(live):
    sent = gzip.compress(b'{"model": "small", "messages": []}')
    answer, body = live.call("POST", CHAT, sent, {"content-encoding": "gzip"})
    assert answer.status == 415
    assert "'gzip'" in error_of(body)["message"]
    answer, _ = live.call("POST", CHAT, b'{"model": "small", "messages": []}', {"content-encoding": "identity"})
    assert answer.status == 200


def test_a_pool_that_rests_says_for_how_long(tmp_path):
    busy = reply(error_body("slow down"), status=429, headers=[JSON, (b"retry-after", b"7")])
    with serving(tmp_path, {"only": busy}) as live:
        assert live.chat("auto")[0].getheader("retry-after") == "7"
        answer, body = live.chat("auto")
        assert answer.status == 503
        assert error_of(body)["code"] == "no_candidate"
        assert answer.getheader("retry-after") in ("6", "7")
        assert answer.getheader("x-should-retry") is None


def test_a_cut_stream_is_told_in_one_sentence(tmp_path):
    with serving(tmp_path, {"only": cut(stream([b'data: {"choices":[]}\n\n'] * 9), 300)}) as live:
        _, body = live.chat("only", stream=True)
    message = json.loads(body.split(b"data: ")[-1])["error"]["message"]
    assert message.startswith("The answer was cut short: ")
    assert message.endswith(".")
    assert not message.endswith("..")


@pytest.mark.parametrize("start", [b"data: ", b"data:"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_every_event_of_a_stream_is_renamed_whatever_it_talks_about(tmp_path, start, end):
    texts = ["plain", 'an event is\ndata: {"model": "x"}\n', "data: {}", "Grüße"]
    made = [{"model": "only", "choices": [{"index": 0, "delta": {"content": t}, "finish_reason": None}]} for t in texts]
    made[-1]["choices"][0]["finish_reason"] = "stop"
    pieces = [start + json.dumps(event).encode() + end for event in made] + [start + b"[DONE]" + end]
    with serving(tmp_path, {"only": stream(pieces)}, head='[server]\nanswer_model = "requested"\n') as live:
        _, body = live.chat("auto", stream=True)
    assert body == b"".join(pieces).replace(b'"model": "only"', b'"model": "auto"')
