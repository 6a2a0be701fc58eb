"""The gateway on the wire: what clients get, whatever backends do."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from polyroute.gateway.scripted import chat_body, chat_events, error_body, reply, scenarios, stream
from tests.gateway.live import serving

ERROR_KEYS = {"message", "type", "param", "code"}
TELLING = ("schema", "request-id", "decision-id", "requested-model", "selected-model", "policy", "reason", "path",
           "attempts", "overhead-ms")  # fmt: skip


def error_of(body: bytes) -> dict:
    error = json.loads(body)["error"]
    assert set(error) == ERROR_KEYS
    return error


def events_of(body: bytes) -> list:
    return [json.loads(e[6:]) for e in body.split(b"\n\n") if e.startswith(b"data: {")]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gateway"), {"small": as_asked, "large": as_asked}) as it:
        yield it


def as_asked(seen):
    """What a good backend does: a stream where one is asked for, with usage where that is asked for."""
    if json.loads(seen.body).get("stream"):
        return stream(chat_events(usage=b"include_usage" in seen.body))
    return reply(chat_body())


def test_a_routed_answer_says_what_was_chosen_and_why(live):
    answer, body = live.chat("auto")
    assert answer.status == 200
    assert body == chat_body()
    for name in TELLING:
        assert answer.getheader(f"x-polyroute-{name}"), name
    assert answer.getheader("x-polyroute-requested-model") == "auto"
    chosen = answer.getheader("x-polyroute-selected-model")
    assert chosen in ("small", "large")
    found, content = live.call("GET", "/polyroute/v1/decisions/" + answer.getheader("x-polyroute-decision-id"))
    assert found.status == 200
    record = json.loads(content)
    assert record["decision"]["selected"] == chosen
    assert [c["id"] for c in record["decision"]["candidates"]] == ["small", "large"]
    for candidate in record["decision"]["candidates"]:
        assert 0 < candidate["mean"]["quality"] < 1
        assert candidate["mean"]["cost"] > 0
        assert candidate["std"]["quality"] > 0
    assert "embedding" not in record["decision"]


def test_only_the_model_is_rewritten_on_the_way_up(live):
    sent = b'{ "messages" : [{"role":"user","content":"caf\xc3\xa9"}],\n "model" : "small" , "new": [1.50, null] }'
    live.call("POST", "/v1/chat/completions", sent, {"authorization": "Bearer secret", "openai-beta": "x"})
    seen = live.upstreams["small"].seen[-1]
    assert seen.body == sent
    assert seen.request_line.startswith(b"POST /v1/chat/completions ")
    names = [name.lower() for name, _ in seen.headers]
    assert b"openai-beta" in names
    assert b"authorization" not in names
    assert not any(name.startswith(b"x-polyroute") for name in names)


def test_cheap_and_best_differ_and_an_override_is_obeyed(live):
    text = "Prove that there are infinitely many primes of the form 4k+3, then generalise."
    cheap, _ = live.chat("auto:cheap", text)
    best, _ = live.chat("auto:best", text)
    assert cheap.getheader("x-polyroute-selected-model") == "small"
    assert best.getheader("x-polyroute-selected-model") == "large"
    override, _ = live.chat("auto:cheap", text, {"x-polyroute-trade-off": "0"})
    assert override.getheader("x-polyroute-selected-model") == "large"
    policy, _ = live.chat("auto", text, {"x-polyroute-policy": "auto:cheap"})
    assert policy.getheader("x-polyroute-policy") == "auto:cheap"
    wrong, body = live.chat("auto", text, {"x-polyroute-trade-off": "lots"})
    assert wrong.status == 400
    assert "x-polyroute-trade-off" in error_of(body)["message"]


def test_a_stream_is_forwarded_without_the_usage_nobody_asked_for(live):
    answer, body = live.chat("small", stream=True)
    assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert answer.getheader("x-accel-buffering") == "no"
    assert b"include_usage" in live.upstreams["small"].seen[-1].body
    assert body == b"".join(chat_events(usage=False))
    record = wait_for_outcome(live, answer)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (9, 3)


def test_a_stream_with_usage_asked_for_is_untouched(live):
    _, body = live.chat("small", stream=True, stream_options={"include_usage": True})
    assert body == b"".join(chat_events())


def wait_for_outcome(live, answer) -> dict:
    path = "/polyroute/v1/decisions/" + answer.getheader("x-polyroute-decision-id")
    for _ in range(200):
        outcome = json.loads(live.call("GET", path)[1])["outcome"]
        if outcome is not None:
            return outcome
        time.sleep(0.01)
    raise AssertionError("no outcome was recorded")


def test_streamed_and_whole_answers_are_accounted_alike(live):
    whole, streamed = live.chat("large")[0], live.chat("large", stream=True)[0]
    one, other = wait_for_outcome(live, whole), wait_for_outcome(live, streamed)
    assert one["cost_usd"] == other["cost_usd"] == pytest.approx((9 * 10 + 3 * 10) / 1e6)
    assert one["dearest_usd"] == one["cost_usd"]
    assert one["state"] == other["state"] == "ok"


def test_models_are_listed_and_found_by_name(live):
    _, body = live.call("GET", "/v1/models")
    names = [entry["id"] for entry in json.loads(body)["data"]]
    assert names == ["auto", "auto:cheap", "auto:best", "small", "large"]
    assert json.loads(live.call("GET", "/v1/models/auto%3Abest")[1])["object"] == "model"
    missing, body = live.call("GET", "/v1/models/a/b")
    assert missing.status == 404
    assert error_of(body)["code"] == "model_not_found"


def test_the_decision_without_the_call(live):
    before = {name: len(upstream.seen) for name, upstream in live.upstreams.items()}
    answer, body = live.call(
        "POST", "/polyroute/v1/route", {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert answer.status == 200
    decision = json.loads(body)
    assert {"decision_id", "selected", "because", "candidates", "weights", "propensity"} <= set(decision)
    assert {name: len(upstream.seen) for name, upstream in live.upstreams.items()} == before


def test_late_feedback_reaches_the_decision(live):
    answer, _ = live.chat("auto")
    decision = answer.getheader("x-polyroute-decision-id")
    told, _ = live.call("POST", "/polyroute/v1/feedback", {"decision_id": decision, "metrics": {"quality": 0.5}})
    assert told.status == 202
    record = json.loads(live.call("GET", f"/polyroute/v1/decisions/{decision}")[1])
    assert record["feedback"][0]["metrics"] == {"quality": 0.5}


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"decision_id": "dec_none", "metrics": {"quality": 1}}, 404, "dec_none"),
        ({"decision_id": "dec_none", "metrics": {}}, 400, "metrics"),
        ({"decision_id": "dec_none", "metrics": {"quality": 2}}, 400, "quality"),
        ({"decision_id": "dec_none", "metric": {"quality": 1}}, 400, "metric"),
        (b"{", 400, "JSON"),
    ],
)
def test_bad_feedback_is_refused(live, body, status, word):
    answer, content = live.call("POST", "/polyroute/v1/feedback", body)
    assert answer.status == status
    assert word in error_of(content)["message"]


@pytest.mark.parametrize(
    ("body", "status", "parameter"),
    [
        (b"{not json", 400, None),
        (b"[]", 400, None),
        (b"", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"model": "auto", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400, None),
        ({"messages": []}, 400, "model"),
        ({"model": 5, "messages": []}, 400, "model"),
        ({"model": "auto"}, 400, "messages"),
        ({"model": "auto", "messages": "hi"}, 400, "messages"),
        ({"model": "auto", "messages": [3]}, 400, "messages[0]"),
        ({"model": "atuo", "messages": []}, 404, "model"),
    ],
)
def test_a_request_that_cannot_be_read_is_told_what_was_expected(live, body, status, parameter):
    answer, content = live.call("POST", "/v1/chat/completions", body)
    assert answer.status == status
    error = error_of(content)
    assert error["param"] == parameter
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert answer.getheader("x-should-retry") == "false"
    if b"atuo" in content:
        assert "Did you mean 'auto'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"model": "auto", "messages": [{"role": "user", "content": "\xff"}]}'),
        ("/v1/chat/completions", b'{"model": "small", "messages": [{"role": "user", "content": "\xff"}]}'),
        ("/v1/chat/completions", b'{"model": "a\xffuto", "messages": [{"role": "user", "content": "hi"}]}'),
        ("/v1/completions", b'{"model": "auto", "prompt": "\xff"}'),
        ("/polyroute/v1/route", b'{"model": "auto", "messages": [{"role": "user", "content": "\xff"}]}'),
        ("/polyroute/v1/feedback", b'{"decision_id": "dec_none", "metrics": {"quality": 1}, "comment": "\xff"}'),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_with_their_place(live, path, body):
    answer, content = live.call("POST", path, body)
    assert answer.status == 400
    told = f"The body is not UTF-8: byte 0xff at position {body.index(0xFF)}. Encode it as UTF-8."
    assert error_of(content)["message"] == told
    assert live.chat("auto", "h\u00e9, \u4f60\u597d")[0].status == 200


def test_embeddings_are_never_routed(live):
    answer, content = live.call("POST", "/v1/embeddings", {"model": "auto", "input": "x"})
    assert answer.status == 400
    assert "name a model" in error_of(content)["message"]
    answer, _ = live.call("POST", "/v1/embeddings", {"model": "small", "input": "x"})
    assert answer.status == 200
    assert live.upstreams["small"].seen[-1].request_line.startswith(b"POST /v1/embeddings ")


def test_completions_are_routed_on_their_prompt(live):
    answer, _ = live.call("POST", "/v1/completions", {"model": "auto", "prompt": "def add(a, b):"})
    assert answer.status == 200
    assert answer.getheader("x-polyroute-policy") == "auto"


def test_needs_rule_candidates_out(live):
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,xx"}}]}
    answer, content = live.call("POST", "/v1/chat/completions", {"model": "auto", "messages": [picture]})
    assert answer.status == 400
    assert error_of(content)["code"] == "no_candidate"
    assert "offers_needs" in error_of(content)["message"]
    assert "It must offer vision and read about" in error_of(content)["message"]


def test_headers_that_cannot_be_followed_are_named_with_what_came(live):
    for headers, said in (
        ({"x-polyroute-policy": "auto:chaep"}, "x-polyroute-policy: Unknown policy 'auto:chaep'"),
        ({"x-polyroute-trade-off": "-1"}, "x-polyroute-trade-off: expected a number of 0 or more, got '-1'."),
    ):
        for path in ("/v1/chat/completions", "/polyroute/v1/route"):
            body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
            answer, content = live.call("POST", path, body, headers)
            assert answer.status == 400
            assert said in error_of(content)["message"]


def test_paths_and_methods_nobody_serves(live):
    answer, content = live.call("GET", "/v1/nothing")
    assert answer.status == 404
    error_of(content)
    answer, content = live.call("GET", "/v1/chat/completions")
    assert answer.status == 405
    error_of(content)


def test_health_readiness_metrics_and_the_page(live):
    assert json.loads(live.call("GET", "/health")[1])["status"] == "ok"
    ready = json.loads(live.call("GET", "/ready")[1])
    assert ready["ready"]
    assert ready["journal"]["ok"]
    text = live.call("GET", "/metrics")[1].decode()
    for name in ("polyroute_stage_seconds", "polyroute_requests_total", "polyroute_overhead_seconds"):
        assert name in text
    page, body = live.call("GET", "/")
    assert page.getheader("content-type").startswith("text/html")
    assert b"http://" not in body.replace(b"http://www.w3.org", b"")
    summary = json.loads(live.call("GET", "/polyroute/v1/summary")[1])
    assert summary["requests"] > 0
    assert 0 < summary["spend_usd"] <= summary["dearest_usd"]
    assert len(summary["frontier"]["points"]) > 3


# what backends do wrong


@pytest.mark.parametrize(
    ("scenario", "status", "code"),
    [
        ("closed_at_once", 502, "upstream_cut"),
        ("not_http", 502, "upstream_protocol"),
        ("silent", 504, "upstream_timeout"),
        ("html", 502, "upstream_protocol"),
        ("429_retry_after", 429, None),
        ("500", 500, None),
    ],
)
def test_a_named_model_that_fails_gives_one_typed_error(tmp_path, scenario, status, code):
    with serving(tmp_path, {"only": scenarios()[scenario]}) as live:
        answer, content = live.chat("only")
        assert answer.status == status
        assert error_of(content)["code"] == code
        if scenario == "429_retry_after":
            assert answer.getheader("retry-after") == "1"
        assert wait_for_outcome(live, answer)["state"] == "error"
        assert live.call("GET", "/health")[0].status == 200


@pytest.mark.parametrize("scenario", ["closed_at_once", "429", "500", "html_503"])
def test_a_virtual_model_falls_back_and_says_so(tmp_path, scenario):
    script = scenarios().get(scenario) or reply(b"<html>", 503, [(b"content-type", b"text/html")])
    with serving(tmp_path, {"small": script, "large": reply(chat_body())}) as live:
        answer, body = live.chat("auto:cheap")
        assert answer.status == 200
        assert body == chat_body()
        assert answer.getheader("x-polyroute-selected-model") == "large"
        assert answer.getheader("x-polyroute-attempts") == "2"
        for _ in range(3):
            live.chat("auto:cheap")
        tries = len(live.upstreams["small"].seen)
        live.chat("auto:cheap")
        assert len(live.upstreams["small"].seen) == tries, "a backend that failed three times rests"


def test_when_all_fail_the_sdk_is_told_not_to_multiply_the_tries(tmp_path):
    with serving(tmp_path, {"small": scenarios()["500"], "large": scenarios()["500"]}) as live:
        answer, content = live.chat("auto")
        assert answer.status == 500
        assert error_of(content)["message"] == "it broke"
        assert answer.getheader("x-should-retry") == "false"
        assert answer.getheader("x-polyroute-attempts") == "2"


@pytest.mark.parametrize("scenario", ["cut_rst", "cut_fin", "stall", "stream_no_end"])
def test_a_cut_stream_ends_in_an_error_and_never_looks_whole(tmp_path, scenario):
    with serving(tmp_path, {"only": scenarios()[scenario]}) as live:
        answer, body = live.chat("only", stream=True)
        assert answer.status == 200
        assert b"[DONE]" not in body
        assert set(events_of(body)[-1]["error"]) == ERROR_KEYS
        assert body.endswith(b"}\n\n")
        assert wait_for_outcome(live, answer)["state"] == "cut"


def test_an_error_event_of_the_backend_passes_and_is_noted(tmp_path):
    with serving(tmp_path, {"only": scenarios()["stream_error"]}) as live:
        answer, body = live.chat("only", stream=True)
        assert events_of(body)[-1]["error"]["message"] == "out of memory"
        assert wait_for_outcome(live, answer)["state"] == "error"


def test_an_error_with_status_200_passes_and_is_noted(tmp_path):
    with serving(tmp_path, {"only": scenarios()["json_error_200"]}) as live:
        answer, body = live.chat("only")
        assert answer.status == 200
        assert body == error_body("out of memory")
        assert wait_for_outcome(live, answer)["state"] == "error"


def test_gzip_nobody_asked_for_passes_and_is_accounted(tmp_path):
    with serving(tmp_path, {"only": scenarios()["json_gzip"]}) as live:
        answer, _ = live.chat("only")
        assert answer.getheader("content-encoding") == "gzip"
        assert wait_for_outcome(live, answer)["completion_tokens"] == 3


def test_split_characters_and_duplicate_tool_indices_pass_byte_for_byte(tmp_path):
    for name in ("stream_split", "stream_duplicate_tool"):
        with serving(tmp_path, {"only": scenarios()[name]}) as live:
            _, body = live.chat("only", stream=True, stream_options={"include_usage": True})
            assert body.endswith(b"data: [DONE]\n\n")
            if name == "stream_split":
                assert body == b"".join(chat_events())


def test_a_client_that_leaves_stops_the_backend(tmp_path):
    endless = stream(chat_events() * 2000, 0.01)
    with serving(tmp_path, {"only": endless}) as live:
        body = json.dumps({"model": "only", "messages": [], "stream": True}).encode()
        sock = socket.create_connection(("127.0.0.1", live.port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        sock.sendall(head + body)
        assert sock.recv(100)
        sock.close()
        seen = live.upstreams["only"].seen
        for _ in range(300):
            if seen and seen[0].left_at is not None:
                break
            time.sleep(0.01)
        assert seen[0].left_at is not None
        for _ in range(100):
            row = live.gateway.journal.recent(1)[0]
            if row["outcome"] is not None:
                break
            time.sleep(0.01)
        assert row["outcome"]["state"] == "cancelled"
        assert row["outcome"]["status"] == 499
        assert live.gateway.in_flight == 0


def test_one_bad_backend_hurts_no_other_request(tmp_path):
    with serving(tmp_path, {"bad": scenarios()["silent"], "good": reply(chat_body())}) as live:
        results: list[int] = []
        slow = threading.Thread(target=lambda: results.append(live.chat("bad")[0].status))
        slow.start()
        for _ in range(20):
            assert live.chat("good")[0].status == 200
        slow.join(10)
        assert results == [504]


def test_a_body_over_the_limit_is_refused(tmp_path):
    with serving(tmp_path, {"only": reply(chat_body())}, head="[server]\nmax_body_mb = 0.01\n") as live:
        answer, content = live.chat("only", "x" * 20_000)
        assert answer.status == 413
        assert "max_body_mb" in error_of(content)["message"]


def test_a_client_key_is_asked_for_and_never_forwarded(tmp_path, monkeypatch):
    monkeypatch.setenv("GATE_KEY", "open-sesame")
    with serving(tmp_path, {"only": reply(chat_body())}, head='[server]\nclient_keys = ["env:GATE_KEY"]\n') as live:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer, content = live.chat("only", headers=headers)
            assert answer.status == 401
            assert error_of(content)["code"] == "invalid_api_key"
            assert b"open-sesame" not in content
        answer, _ = live.chat("only", headers={"authorization": "Bearer open-sesame"})
        assert answer.status == 200
        assert b"open-sesame" not in live.upstreams["only"].seen[0].head
        assert live.call("GET", "/polyroute/v1/decisions")[0].status == 401
        assert live.call("GET", "/health")[0].status == 200


def test_answers_can_carry_the_requested_name(tmp_path):
    scripts = {"only": (reply(chat_body()), stream(chat_events()))}
    with serving(tmp_path, scripts, head='[server]\nanswer_model = "requested"\n') as live:
        assert json.loads(live.chat("auto")[1])["model"] == "auto"
        events = events_of(live.chat("auto", stream=True)[1])
        assert {event["model"] for event in events} == {"auto"}


def test_an_operators_policy_is_a_model(tmp_path):
    extra = '[policies.frugal]\nweights = { quality = 0.0, cost = -1.0 }\nmodels = ["small"]\n'
    with serving(tmp_path, {"small": reply(chat_body()), "large": reply(chat_body())}, extra) as live:
        answer, _ = live.chat("frugal")
        assert answer.getheader("x-polyroute-selected-model") == "small"
        assert "frugal" in [entry["id"] for entry in json.loads(live.call("GET", "/v1/models")[1])["data"]]


def test_latency_and_length_are_learned_while_serving(tmp_path):
    with serving(tmp_path, {"small": reply(chat_body()), "large": reply(chat_body())}) as live:
        live.gateway.latencies.clear()

        def expected() -> dict:
            body = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
            told = json.loads(live.call("POST", "/polyroute/v1/route", body)[1])
            return next(c["mean"] for c in told["candidates"] if c["id"] == "small")

        before = expected()
        for _ in range(30):
            live.chat("small")
        for _ in range(300):
            after = expected()
            if after["latency"] < before["latency"] / 2:
                break
            time.sleep(0.02)
        assert after["latency"] < before["latency"] / 2
        assert after["cost"] < before["cost"], "three tokens an answer cost less than the typical number"
