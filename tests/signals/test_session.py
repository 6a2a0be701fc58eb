"""A follow-up keeps the model that the conversation needs."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.policies.session import Sessions, keep_or_switch
from polyroute.signals.conversation import routing_text
from polyroute.signals.session import conversation_key, in_tool_loop, is_follow_up, only_replies

TASK = (
    "Here is our scheduler. Prove that the locking order cannot deadlock, then rewrite the eviction loop so that it is "
    "linearizable, and give the invariants: def evict(self): ..."
)
CHAT = [
    {"role": "system", "content": "You are a careful engineer."},
    {"role": "user", "content": TASK},
    {"role": "assistant", "content": "I would take the shard locks in order of their ids. Shall I rewrite it?"},
    {"role": "user", "content": "yes, do it"},
]


@pytest.mark.parametrize(
    "text",
    ["yes, do it", "Yes.", "ok", "go on", "continue please", "No, the other one", "2", "option b", "Why?", "да"],
)
def test_turns_that_only_go_along(text):
    assert only_replies(text)
    assert only_replies("")
    assert is_follow_up([*CHAT[:3], {"role": "user", "content": text}])


@pytest.mark.parametrize(
    "text",
    ["prove it", "now the same for the Riemann zeta function", "write a sonnet", "yes, and port it to Rust",
     "yes do it and then go on with the next one and the one that is there", "Translate this", "fais-le en Python"],
)  # fmt: skip
def test_turns_that_say_something_of_their_own(text):
    assert not is_follow_up([*CHAT[:3], {"role": "user", "content": text}])


def test_a_first_turn_is_never_a_follow_up():
    assert not is_follow_up([{"role": "user", "content": "yes"}])
    assert not is_follow_up("yes")
    assert not is_follow_up(None)


def test_a_conversation_keeps_its_key_and_others_have_others():
    key = conversation_key(CHAT)
    assert key == conversation_key(CHAT[:2]) == conversation_key([*CHAT, {"role": "assistant", "content": "Done."}])
    assert key != conversation_key(CHAT, tenant="b")
    assert key != conversation_key([CHAT[0], {"role": "user", "content": "Hello"}])
    assert key != conversation_key(CHAT[1:])
    assert conversation_key("Hello") == conversation_key(
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    )
    for nothing in (None, [], 7, b"x", [3], [{"role": "user"}], [{"role": "assistant", "content": "hi"}]):
        assert conversation_key(nothing) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"role": "tool", "content": "42", "tool_call_id": "c"}, True),
        ({"role": "user", "content": [{"type": "tool_result", "content": "42"}]}, True),
        ({"type": "function_call_output", "output": "42"}, True),
        ({"role": "user", "content": "42"}, False),
        ({"role": "assistant", "content": "42"}, False),
        ("42", False),
    ],
)
def test_tools_at_work(last, expected):
    assert in_tool_loop([*CHAT, last]) is expected
    assert not in_tool_loop([])
    assert not in_tool_loop(None)


class Conversation:
    """What a gateway does with one conversation: read signals, weigh, keep or switch, note who served.

    The judge stands for a router: it reads the routing text and finds the large model worth its price where the text
    speaks of proofs, mostly; "thanks" at the end of a long answer makes it doubt.
    """

    ids = ("small", "large")

    def __init__(self):
        self.sessions, self.now = Sessions(), 0.0

    def utility(self, messages):
        words = routing_text(messages).lower().split()
        hard = sum(w.strip(".,:") in {"prove", "deadlock", "linearizable", "invariants"} for w in words)
        return np.array([0.5, 0.3 + 6.0 * hard / max(len(words), 1)])

    def turn(self, messages):
        key = conversation_key(messages)
        self.now += 20.0
        kept = keep_or_switch(
            self.ids, self.utility(messages), self.sessions.look(key, self.now), now_s=self.now,
            in_tool_loop=in_tool_loop(messages), trust=0.0 if is_follow_up(messages) else 1.0,
        )  # fmt: skip
        self.sessions.served(key, self.ids[kept.column], self.now)
        return self.ids[kept.column]


def test_yes_do_it_stays_with_the_model_the_task_was_given_to():
    conversation = Conversation()
    assert conversation.turn(CHAT[:2]) == "large"
    later = [*CHAT[:2], {"role": "assistant", "content": "Done. " + "The loop now holds one lock at a time. " * 40}]
    for text in ("yes, do it", "thanks, go on"):
        messages = [*later, {"role": "user", "content": text}]
        assert conversation.ids[int(np.argmax(conversation.utility(messages[-1:])))] == "small"  # the turn alone
        assert conversation.turn(messages) == "large"


def test_an_easy_conversation_moves_up_when_a_turn_asks_for_it_and_not_in_a_tool_loop():
    conversation = Conversation()
    chat = [{"role": "user", "content": "Hello, which files are here?"}]
    assert conversation.turn(chat) == "small"
    chat += [{"role": "assistant", "content": "Two."}, {"role": "user", "content": TASK}]
    looping = [*chat, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "main.py"}]
    assert conversation.turn(looping) == "small"
    assert conversation.turn(chat) == "large"


def test_a_calculation_is_no_reply():
    assert not only_replies("What is 2+2?")
    assert not only_replies("and 12 * 3?")
    assert only_replies("option 2")
    assert only_replies("1 and 3, please")
