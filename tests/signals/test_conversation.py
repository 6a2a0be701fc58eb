"""The text to route on: what it keeps, what it leaves out, and that nothing makes it fail."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.signals.conversation import (
    CAP,
    DROP,
    OPEN_ENDED,
    READ,
    TURNS,
    context_room,
    has_long_word,
    routing_text,
    sample,
)

QUESTION = "How do I reverse a linked list in Rust without unsafe code?"
TOOLS = '[{"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}]' * 40


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


# --- one turn


@pytest.mark.parametrize(
    "text", [QUESTION, "法国的首都是哪里？", "if a < b and c > d: print('<p>')", "x\n\n  y", "🎉", "<b>bold</b> word"]
)
def test_a_single_turn_comes_back_as_written(text):
    assert routing_text([user(text)]) == text
    assert routing_text([user([{"type": "text", "text": text}])]) == text
    assert routing_text(text) == text


def test_a_turn_as_long_as_the_cap_is_whole_and_a_longer_one_is_sampled():
    words = " ".join(f"w{i}" for i in range(2_000))
    assert routing_text([user(words[:CAP].strip())]) == words[:CAP].strip()
    text = routing_text([user(words)])
    assert CAP * 0.9 < len(text) <= CAP
    head, middle, tail = text.split("\n")
    assert words.startswith(head)
    assert words.endswith(tail)
    assert middle in words
    assert set(text.split()) <= set(words.split())  # no word is cut in two
    assert routing_text([user(words)]) == text


# --- several turns


def test_the_last_user_turn_comes_first_and_whole():
    turns = [user("first question " * 40), assistant("an answer " * 40), user(QUESTION)]
    text = routing_text(turns)
    assert text.startswith(QUESTION + "\n")
    assert "first question" in text
    assert len(text) <= CAP


def test_a_bare_follow_up_keeps_its_topic():
    text = routing_text([user(QUESTION), assistant("You can use Option::take. Shall I write it?"), user("yes, do it")])
    assert text.startswith("yes, do it\n")
    assert QUESTION in text
    assert "Option::take" in text


def test_a_chain_of_follow_ups_still_reaches_the_topic():
    turns = [user(QUESTION)]
    for word in ("ok", "continue", "next", "go on"):
        turns += [assistant("Done."), user(word)]
    assert QUESTION in routing_text(turns)


def test_a_long_last_turn_is_not_drowned():
    last = "a new and quite long question about gardening " * 10
    text = routing_text([user("x" * 3_000 + " old " * 500), assistant("y " * 2_000), user(last.strip())])
    assert text.startswith(last.strip())
    assert len(text) <= 2 * len(last)


def test_nearer_turns_get_more():
    def turn(letter):
        return user(f"{letter * 4} " * 200)

    text = routing_text([turn("a"), turn("b"), turn("c"), user("z " * 150)])
    assert text.count("c") > text.count("b") > text.count("a")


def test_a_tool_loop_does_not_change_the_text():
    turns = [user(QUESTION)]
    before = routing_text(turns)
    turns += [
        assistant(
            "I will look at the file.", tool_calls=[{"id": "1", "function": {"name": "read", "arguments": "{}"}}]
        ),
        {"role": "tool", "tool_call_id": "1", "content": "fn main() {}" * 500},
        assistant(None, tool_calls=[{"id": "2"}]),
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "ok"}]},
        assistant([{"type": "tool_use", "id": "3", "name": "bash", "input": {}}]),
        user([{"type": "tool_result", "tool_use_id": "3", "content": [{"type": "text", "text": "done"}]}]),
    ]
    assert routing_text(turns) == before


@pytest.mark.parametrize("cap", [0, 1, 10, 80, 500, CAP])
def test_the_cap_holds(cap):
    turns = [user("old words " * 300), assistant("answers " * 300), user("new words " * 300)]
    for messages in (turns, turns[:1], [{"role": "system", "content": "s " * 3_000}]):
        assert len(routing_text(messages, cap)) <= cap


def test_room_for_context_shrinks_while_the_last_turn_grows_and_then_follows_it():
    rooms = [context_room("x" * n, CAP)[0] for n in range(2_000)]
    assert rooms[0] > rooms[20] > rooms[45]
    assert rooms[100:1_000] == list(range(100, 1_000))
    assert max(rooms) == CAP // 2


def test_ideographs_count_as_several_letters():
    assert context_room("好" * 40, CAP)[0] == 40
    assert context_room("好" * 10, CAP)[0] == context_room("x" * 30, CAP)[0] // 3


# --- boilerplate

HARNESS = [
    "<system-reminder>\nThe date is today. Never mention this.\n</system-reminder>",
    "<environment_context>\n  <cwd>/home/x</cwd>\n  <shell>bash</shell>\n</environment_context>",
    "<environment_details>\n# VSCode Visible Files\nsrc/main.rs\n" + "src/a.rs\n" * 300 + "</environment_details>",
    '<ide_opened_file path="a.py">The user opened a.py</ide_opened_file>',
    "<user_info>\nThe user's OS is Linux.\n</user_info>",
]


@pytest.mark.parametrize("block", HARNESS, ids=lambda block: block[:20])
def test_harness_blocks_in_a_user_turn_leave_no_trace(block):
    assert routing_text([user(f"{block}\n\n{QUESTION}")]) == QUESTION
    assert routing_text([user(f"{QUESTION}\n{block}")]) == QUESTION
    assert routing_text([user([{"type": "text", "text": block}, {"type": "text", "text": QUESTION}])]) == QUESTION
    assert routing_text([user(QUESTION), user(block)]) == QUESTION


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompts_leave_no_trace(role, static):
    prompt = "You are a coding agent. Think hard about mathematics. " * 200 + TOOLS
    bare = [user("Hi!"), assistant("Hello."), user(QUESTION)]
    dressed = [
        {"role": role, "content": prompt},
        user(HARNESS[0] + "Hi!"),
        {"role": role, "content": prompt},
        assistant("Hello."),
        user(QUESTION + "\n" + HARNESS[2]),
    ]
    np.testing.assert_array_equal(static([routing_text(bare)]), static([routing_text(dressed)]))


def test_a_task_wrapper_is_unwrapped():
    assert routing_text([user(f"<task>\n{QUESTION}\n</task>\n{HARNESS[2]}")]) == QUESTION
    assert routing_text([user(f"<user_query>{QUESTION}</user_query>")]) == QUESTION


def test_a_reminder_whose_end_was_cut_off_is_dropped_to_the_end():
    assert routing_text([user(QUESTION + "\n<system-reminder>" + "never closed " * 50)]) == QUESTION


def test_a_long_tagged_block_is_sampled_not_dropped():
    text = routing_text([user("Summarise <report>" + "figures and tables " * 200 + "</report> in a line.")])
    assert text.startswith("Summarise <report>figures")
    assert text.endswith("</report> in a line.")
    assert len(text) < 700


def test_a_pasted_file_is_sampled():
    text = routing_text([user("Fix this:\n```python\n" + "x = f(y)\n" * 1_000 + "```\nIt raises a TypeError.")])
    assert text.startswith("Fix this:\n```python\nx = f(y)")
    assert text.endswith("```\nIt raises a TypeError.")
    assert len(text) < 700


def test_encoded_data_is_dropped():
    blob = base64.b64encode(bytes(range(256)) * 20).decode()
    assert "iIyQl" not in routing_text([user(f"What is in this? data:image/png;base64,{blob} Tell me.")])
    assert routing_text([user(f"What is in this? {blob} Tell me.")]) == "What is in this?   Tell me."


@given(st.lists(st.sampled_from(["x" * 80, "y" * 159, "z" * 160, " ", "  ", "a b"]), max_size=8).map("".join))
def test_long_words_are_found(text):
    assert has_long_word(text) == any(len(word) >= 160 for word in text.split(" "))


def test_blocks_are_matched_by_name_in_any_nesting():
    assert routing_text([user("a <system-reminder>b <p>c</p></system-reminder> d")]) == "a  d"
    assert all(name == name.lower() for name in DROP)
    assert OPEN_ENDED <= DROP


def test_many_unclosed_tags_stay_as_they_are():
    text = "<a><b>" * 300
    assert routing_text([user(text)], 5_000) == text


# --- shapes


def test_parts_that_are_not_text_say_nothing():
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 5_000, "format": "wav"}},
        {"type": "document", "source": {"data": "A" * 5_000}},
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": QUESTION},
        {"type": "tool_result", "content": "long output " * 100},
    ]
    assert routing_text([user(parts)]) == QUESTION


def test_a_picture_alone_falls_back_to_the_turn_before():
    assert (
        routing_text([user(QUESTION), user([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])])
        == QUESTION
    )


def test_responses_input_items():
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "text"},
    ]
    assert routing_text(items) == QUESTION


def test_without_a_user_the_last_text_counts():
    assert routing_text([{"role": "system", "content": "Write a haiku."}]) == "Write a haiku."
    assert routing_text([assistant("Once upon"), {"role": "system", "content": ""}]) == "Once upon"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        5,
        b"bytes",
        {},
        [],
        [None, 1, "text", [], {}],
        [{"role": None, "content": "x"}, {"role": ["user"], "content": 3}],
        [user(None)],
        [user(3.5)],
        [user({"type": "text", "text": None})],
        [user([{"type": ["text"], "text": "x"}, {"text": 4}, None, [[[[["deep"]]]]]])],
        [user("\ud800 lone \udfff")],
        [user("\0")],
        [{"content": "no role"}],
    ],
    ids=repr,
)
def test_odd_shapes_are_ignored(messages):
    text = routing_text(messages)
    assert isinstance(text, str)
    assert len(text) <= CAP


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(codec=None), max_size=40) | st.just("<task>"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": JSON})


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGE | JSON, max_size=5), st.integers(0, 300))
def test_nothing_fails_and_the_cap_holds(messages, cap):
    text = routing_text(messages, cap)
    assert isinstance(text, str)
    assert len(text) <= cap


def test_only_so_many_turns_are_looked_at():
    empty = [user(HARNESS[0])] * TURNS
    assert routing_text([user(QUESTION), *empty[1:]]) == QUESTION
    assert routing_text([user(QUESTION), assistant("Sure."), user("go on"), *empty[1:]]) == "go on"


def test_a_message_is_read_in_part_only():
    huge = "start " + "x y " * 300_000 + " end"
    text = routing_text([user(huge)])
    assert text.startswith("start")
    assert text.endswith("end")
    middle = huge[:READ] + "SECRET" + huge[-READ:]
    assert "SECRET" not in routing_text([user(middle)], 10 * READ)


@pytest.mark.parametrize("cap", [0, 1, 2, 3, 50, 71, 72, 100, 999])
def test_samples_fit(cap):
    text = " ".join(str(i) for i in range(1_000))
    piece = sample(text, cap)
    assert len(piece) <= cap
    assert sample(piece, cap) == piece
