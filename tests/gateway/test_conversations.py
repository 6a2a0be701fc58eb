"""A conversation stays with the model that serves it, unless moving gains more than it costs."""

from __future__ import annotations

import json

import pytest

from polyroute.gateway.conversations import stickiness, thread_of
from polyroute.gateway.scripted import chat_body, reply
from tests.gateway.live import serving

POLICIES = """
[policies.loyal]
trade_off = 3.0
sticky = 9.0
[policies.fickle]
trade_off = 3.0
sticky = 0
[policies.careful]
trade_off = 3.0
sticky = 0.001
"""
TOOL = {"role": "tool", "tool_call_id": "call_1", "content": "42"}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    scripts = {"small": lambda seen: reply(chat_body()), "large": lambda seen: reply(chat_body())}
    with serving(tmp_path_factory.mktemp("talks"), scripts, POLICIES) as it:
        yield it


def ask(live, model, messages, headers=None):
    body = {"model": model, "messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}
    answer, _ = live.call("POST", "/v1/chat/completions", body, headers)
    assert answer.status == 200
    return answer.getheader("x-polyroute-selected-model"), answer.getheader("x-polyroute-reason")


def opening(live, model, text, headers=None):
    """A first turn that goes to the large model; returns what stands in the conversation after it."""
    first = [{"role": "system", "content": "You help."}, {"role": "user", "content": text}]
    assert ask(live, model, first, {"x-polyroute-trade-off": "0", **(headers or {})})[0] == "large"
    return [*first, {"role": "assistant", "content": "Here is a plan. Shall I?"}]


def test_a_follow_up_keeps_the_model(live):
    talk = opening(live, "loyal", "Prove that there are infinitely many primes.")
    chosen, reason = ask(live, "loyal", [*talk, {"role": "user", "content": "yes, do it"}])
    assert chosen == "large"
    assert reason.startswith("goes on with the conversation")


def test_without_a_price_each_turn_is_decided_anew(live):
    talk = opening(live, "fickle", "Prove that the square root of two is irrational.")
    assert ask(live, "fickle", [*talk, {"role": "user", "content": "yes, do it"}])[0] == "small"


def test_another_conversation_is_not_held(live):
    opening(live, "loyal", "Prove the theorem of Pythagoras.")
    other = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    assert ask(live, "loyal", [*other, {"role": "user", "content": "and 3+3?"}])[0] == "small"


def test_a_gain_above_the_price_moves_it(live):
    talk = opening(live, "careful", "Write a haiku about rain.")
    assert ask(live, "careful", [*talk, {"role": "user", "content": "What is 2+2?"}])[0] == "small"
    assert ask(live, "careful", [*talk, {"role": "user", "content": "yes, do it"}])[0] == "small"  # that one now


def test_a_tool_loop_stays_whatever_is_gained(live):
    talk = opening(live, "careful", "Look up the weather in Oslo.")
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    assert ask(live, "careful", [*talk[:-1], call, TOOL])[0] == "large"


def test_a_header_names_the_conversation(live):
    name = {"x-session-id": "s-1"}
    opening(live, "loyal", "Name three rivers.", name)
    alone = [{"role": "user", "content": "and three lakes"}]
    assert ask(live, "loyal", alone, name)[0] == "large"
    assert ask(live, "loyal", alone, {"x-session-id": "s-2"})[0] == "small"


def test_a_conversation_is_told_by_how_it_opens():
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    first, later = (
        thread_of([user], None, None),
        thread_of([user, answer, {"role": "user", "content": "go on"}], None, None),
    )
    assert first.key == later.key
    assert (first.follows, later.follows) == (False, True)
    assert thread_of([user], None, "key-1").key != first.key
    assert thread_of([{"role": "system", "content": "x"}, user], None, None).key != first.key
    parts = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]}]
    assert thread_of([user, answer, *parts], None, None).stays
    assert not thread_of(parts, None, None).stays
    assert json.dumps(first.key)


def test_the_price_is_split_between_voice_and_cache():
    assert stickiness(0) is None
    config = stickiness(0.2)
    assert config.bar(warmth=1.0) == pytest.approx(0.2)
    assert config.bar(warmth=0.0) == pytest.approx(0.1)
