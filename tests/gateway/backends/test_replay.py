"""Recorded answers: exact texts, exact counts, the protocol's shapes, and an error for what was not recorded."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.gateway.backends.replay import ReplayBackend
from polyroute.gateway.transport import Timeouts

ROOT = Path(__file__).resolve().parents[3]
RECORDED = Path(os.environ.get("POLYROUTE_DATA", ROOT.parent / "shared/data")) / "outcomes"


def row(prompt, response, model="m", counts=(7, 3), query_id="q1"):
    counted = {"input_tokens": counts[0], "output_tokens": counts[1]}
    return {"query_id": query_id, "prompt": prompt, "model": model, "response": response, **counted}


def backend(*rows, **options) -> ReplayBackend:
    return ReplayBackend("demo", rows, "m", clock=lambda: 1700000000.5, **options)


def ask(replay, body, path="/v1/chat/completions"):
    """(status, headers, body) of one request."""

    async def go():
        reply = await replay.send(path, [], body if isinstance(body, bytes) else json.dumps(body).encode(), Timeouts())
        return reply.status, dict(reply.headers), [chunk async for chunk in reply.chunks()]

    return asyncio.run(go())


def chat(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def events(chunks: list[bytes]) -> list[dict]:
    """The JSON of a stream's events; each chunk is one event and the last is the end mark."""
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert all(c.startswith(b"data: ") and c.endswith(b"\n\n") and c.count(b"\n") == 2 for c in chunks)
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks[:-1]]


def test_a_recorded_prompt_gets_the_recorded_answer_and_counts():
    status, headers, chunks = ask(backend(row("2+2?", " It is 4.\n")), chat("2+2?"))
    answer = json.loads(b"".join(chunks))
    assert status == 200
    assert headers[b"x-polyroute-path"] == b"replay"
    assert headers[b"x-polyroute-usage"] == b"recorded"
    assert answer["object"] == "chat.completion"
    assert (answer["id"], answer["created"], answer["model"]) == ("replay-q1", 1700000000, "m")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": " It is 4.\n"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "2+2?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "2+2?"},
        ],
        [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}],
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": None}],
    ],
)
def test_the_last_user_message_finds_the_answer(messages):
    status, _, chunks = ask(backend(row("2+2?", "4")), {"model": "m", "messages": messages})
    assert status == 200
    assert json.loads(b"".join(chunks))["choices"][0]["message"]["content"] == "4"


def test_a_whole_prompt_finds_the_answer_too():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    status, _, _ = ask(backend(row("Be brief.\n\n2+2?", "4")), {"model": "m", "messages": messages})
    assert status == 200


def test_text_completions_are_replayed_as_well():
    _, _, chunks = ask(backend(row("2+2?", "4")), {"model": "m", "prompt": "2+2?"}, "/v1/completions")
    answer = json.loads(b"".join(chunks))
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "4")
    body = {"model": "m", "prompt": ["2+2?"], "stream": True}
    stream = events(ask(backend(row("2+2?", "it is 4")), body, "/v1/completions")[2])
    assert "".join(event["choices"][0]["text"] for event in stream) == "it is 4"


@given(st.text())
def test_a_stream_adds_up_to_the_answer(answer):
    chunks = ask(backend(row("q", answer)), chat("q", stream=True))[2]
    stream = events(chunks)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in stream) == answer
    assert stream[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["finish_reason"] for event in stream] == [None] * (len(stream) - 1) + ["stop"]
    assert len({(event["id"], event["created"], event["model"]) for event in stream}) == 1
    assert not any("usage" in event for event in stream)


def test_a_stream_ends_with_usage_where_it_is_asked_for():
    body = chat("q", stream=True, stream_options={"include_usage": True})
    stream = events(ask(backend(row("q", "two words")), body)[2])
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert all(event["usage"] is None and event["choices"] for event in stream[:-1])


def test_a_stream_can_be_paced():
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    replay = backend(row("q", "one two three"), tokens_per_s=20, sleep=sleep)
    chunks = ask(replay, chat("q", stream=True))[2]
    assert waits == [0.05] * (len(chunks) - 1)


@pytest.mark.parametrize(("counts", "expected"), [((None, 3), (2, 3)), ((7, None), (7, 3)), ((None, None), (2, 3))])
def test_a_missing_count_is_estimated_and_marked(counts, expected):
    # "five!" is 5 bytes, 2 tokens of four; "täglich ja" is 11 bytes, 3 tokens
    _, headers, chunks = ask(backend(row("five!", "täglich ja", counts=counts)), chat("five!"))
    usage = json.loads(b"".join(chunks))["usage"]
    assert headers[b"x-polyroute-usage"] == b"estimated"
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_an_unknown_prompt_is_a_404_that_says_so(stream):
    status, headers, chunks = ask(backend(row("q", "a")), chat("q ", stream=stream))
    error = json.loads(b"".join(chunks))["error"]
    assert (status, headers[b"content-type"]) == (404, b"application/json")
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "not_recorded"
    assert "replays a recording and computes nothing" in error["message"]


def test_other_endpoints_and_broken_requests_are_refused():
    replay = backend(row("q", "a"))
    assert ask(replay, {"input": "q"}, "/v1/embeddings")[0] == 404
    for body in (b"{", b"[]", b'{"messages": 1}', b'{"messages": ["q"]}', b"{}"):
        assert ask(replay, body)[0] == 400


def test_only_rows_of_the_model_with_prompt_and_answer_count():
    replay = backend(
        row("q", "first"), row("q", "second"), row(None, "x"), row("r", None), row("other", "x", model="o"),
        name="public-name", source="table.parquet",
    )  # fmt: skip
    assert list(replay.answers) == ["q"]
    answer = json.loads(b"".join(ask(replay, chat("q"))[2]))
    assert (answer["choices"][0]["message"]["content"], answer["model"]) == ("first", "public-name")
    status = asyncio.run(replay.status())
    assert (status.state, status.detail) == ("ready", "replays 1 recorded answers of m from table.parquet")


def test_a_table_is_read_by_model_and_its_mistakes_are_told(tmp_path):
    path = tmp_path / "t.parquet"
    table = pyarrow.Table.from_pylist([row("q", "a"), row("q", "b", model="strong/model")])
    table = table.set_column(2, "model", table["model"].dictionary_encode())
    pyarrow.parquet.write_table(table, path)
    replay = ReplayBackend.from_table("demo", path, "strong/model", name="strong")
    assert replay.answers["q"].answer == "b"
    with pytest.raises(UnknownNameError, match="Did you mean 'strong/model'"):
        ReplayBackend.from_table("demo", path, "strong-model")
    with pytest.raises(ConfigError, match=r"models\.demo\.table: expected a Parquet file"):
        ReplayBackend.from_table("demo", tmp_path / "absent.parquet", "m")
    pyarrow.parquet.write_table(table.drop_columns(["response"]), path)
    with pytest.raises(ConfigError, match="response"):
        ReplayBackend.from_table("demo", path, "m")
    path.write_text("not parquet")
    with pytest.raises(ConfigError, match="Parquet"):
        ReplayBackend.from_table("demo", path, "m")


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recorded outcomes in {RECORDED}; set POLYROUTE_DATA")
def test_replayed_usage_at_the_tables_price_is_the_tables_cost():
    wanted, prices = "gpt-4-1106-preview", (10, 30)
    replay = ReplayBackend.from_table("strong", RECORDED / "routellm_gsm8k_responses.parquet", wanted)
    table = pyarrow.parquet.read_table(
        RECORDED / "routellm.parquet", columns=["prompt", "model", "dataset", "cost_usd"]
    )
    rows = [r for r in table.to_pylist() if r["model"] == wanted and r["dataset"] == "gsm8k"]
    assert len(rows) == len(replay.answers) == 873
    for r in rows[:50]:
        usage = json.loads(b"".join(ask(replay, chat(r["prompt"]))[2]))["usage"]
        cost = (usage["prompt_tokens"] * prices[0] + usage["completion_tokens"] * prices[1]) / 1e6
        assert cost == pytest.approx(r["cost_usd"], rel=1e-9)
