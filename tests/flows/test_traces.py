"""What a routing language model may write: golden strings, each with one rule broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyroute.errors import ReplyError
from polyroute.flows.traces import Event, check_trace, fault_of, next_act, parse_trace, up_to_act

NAMES = ("Qwen2.5-7B", "Llama-70B", "mixtral")
THINK, ANSWER = "<think>who knows Paris?</think>", "<answer>Paris</answer>"
SEARCH = "<search>mixtral: What is the capital of France?</search>"
INFORMATION = "<information>It is Paris.</information>"

GOOD = [
    THINK + ANSWER,
    f"  \n{THINK}\n{ANSWER}\n ",
    THINK + SEARCH + INFORMATION + ANSWER,
    THINK + SEARCH + INFORMATION + THINK + SEARCH + INFORMATION + THINK + ANSWER,
    f"{THINK} let me ask {SEARCH}\n\n{INFORMATION}\nso {ANSWER}",
    THINK + "<search> MIXTRAL :  capital? </search>" + INFORMATION + ANSWER,
    THINK + SEARCH + "<information></information>" + ANSWER,  # a model may have said nothing
    THINK + "<answer>a < b and b > c</answer>",
    THINK + "<answer><b>Paris</b></answer>",
]
BROKEN = [
    ("", "it does not begin with <think>"),
    ("Paris", "it does not begin with <think>"),
    (ANSWER, "it does not begin with <think>"),
    ("Sure! " + THINK + ANSWER, "it does not begin with <think>"),
    (SEARCH + INFORMATION + THINK + ANSWER, "it does not begin with <think>"),
    (THINK, "it has 0 answers instead of 1"),
    (THINK + "Paris", "it has 0 answers instead of 1"),
    (THINK + SEARCH + INFORMATION, "it has 0 answers instead of 1"),
    (THINK + ANSWER + ANSWER, "it has 2 answers instead of 1"),
    (THINK + ANSWER + THINK, "the answer is not last"),
    (THINK + ANSWER + " That is all.", "the answer is not last"),
    (THINK + ANSWER + SEARCH + INFORMATION, "the answer is not last"),
    (THINK + SEARCH + ANSWER, "searches and information do not pair up"),
    (THINK + INFORMATION + ANSWER, "searches and information do not pair up"),
    (THINK + SEARCH + INFORMATION + INFORMATION + ANSWER, "searches and information do not pair up"),
    (THINK + SEARCH + SEARCH + INFORMATION + INFORMATION + ANSWER, "searches and information do not pair up"),
    (THINK + INFORMATION + SEARCH + ANSWER, "searches and information do not pair up"),
    (THINK + SEARCH + THINK + INFORMATION + ANSWER, "searches and information do not pair up"),
    (THINK + "<search>capital of France</search>" + INFORMATION + ANSWER, "a search has 0 colons instead of 1"),
    (THINK + "<search>mixtral: a: b</search>" + INFORMATION + ANSWER, "a search has 2 colons instead of 1"),
    (THINK + "<search>GPT-4: capital?</search>" + INFORMATION + ANSWER, "it asks 'GPT-4', which is not in the pool"),
    (THINK + "<search>mix: capital?</search>" + INFORMATION + ANSWER, "it asks 'mix', which is not in the pool"),
    (THINK + "<search>: capital?</search>" + INFORMATION + ANSWER, "a search holds a placeholder"),
    (THINK + "<search>mixtral:</search>" + INFORMATION + ANSWER, "a search holds a placeholder"),
    (THINK + "<search>mixtral: ...</search>" + INFORMATION + ANSWER, "a search holds a placeholder"),
    (THINK + "<search>NAME: QUESTION</search>" + INFORMATION + ANSWER, "a search holds a placeholder"),
    (THINK + "<search>mixtral: [your query]</search>" + INFORMATION + ANSWER, "a search holds a placeholder"),
    ("<think></think>" + ANSWER, "a thought or an answer is a placeholder"),
    ("<think>...</think>" + ANSWER, "a thought or an answer is a placeholder"),
    (THINK + "<answer> </answer>", "a thought or an answer is a placeholder"),
    (THINK + "<answer>...</answer>", "a thought or an answer is a placeholder"),
    ("<think>who?" + ANSWER, "<answer> stands inside <think>"),
    ("<think>who?", "<think> is never closed"),
    (THINK + "<answer>Paris", "<answer> is never closed"),
    ("</think>" + ANSWER, "</think> closes nothing"),
    (THINK + "</think>" + ANSWER, "</think> closes nothing"),
    ("<think>who?</answer>", "</answer> closes <think>"),
    ("<think>a<think>b</think></think>" + ANSWER, "<think> stands inside <think>"),
    (THINK + "<answer>x <search>mixtral: q</search></answer>", "<search> stands inside <answer>"),
    (THINK + 5 * (SEARCH + INFORMATION) + ANSWER, "it searches 5 times"),
]


@pytest.mark.parametrize("text", GOOD)
def test_a_good_trace_breaks_no_rule(text):
    assert fault_of(text, NAMES, max_searches=4) is None
    assert check_trace(text, NAMES)[-1].kind == "answer"


@pytest.mark.parametrize(("text", "rule"), BROKEN)
def test_a_broken_trace_names_its_rule(text, rule):
    assert fault_of(text, NAMES, max_searches=4) == rule


def test_events_keep_order_and_lose_space():
    assert parse_trace(THINK + "<search> mixtral :  Why? </search>" + INFORMATION + ANSWER) == [
        Event("think", "who knows Paris?"),
        Event("search", "Why?", "mixtral"),
        Event("information", "It is Paris."),
        Event("answer", "Paris"),
    ]


def test_the_error_shows_the_text_and_what_to_do():
    with pytest.raises(ReplyError, match=r"got '<think>hm' \(<think> is never closed\). Give a fallback") as raised:
        parse_trace("<think>hm")
    assert raised.value.rule == "<think> is never closed"
    assert len(str(ReplyError("rule", "x" * 9999, expected="y"))) < 400


@given(st.lists(st.sampled_from([*"<>/:. \n", "think", "search", "answer", THINK, SEARCH, INFORMATION, ANSWER])))
def test_any_text_is_judged_without_another_error(pieces):
    text = "".join(pieces)
    rule = fault_of(text, NAMES)
    if rule is None:
        assert text.strip().endswith("</answer>")
    act = next_act(text)
    assert act is None or act.kind in ("search", "answer")
    assert text.startswith(up_to_act(text))


@pytest.mark.parametrize(
    ("text", "act", "kept"),
    [
        (SEARCH + "<information>I made this up</information>" + ANSWER,
         Event("search", "What is the capital of France?", "mixtral"), SEARCH),
        (THINK + ANSWER + SEARCH, Event("answer", "Paris"), THINK + ANSWER),
        ("<search>nobody", None, "<search>nobody"),
        ("<search>a b</search>" + ANSWER, None, "<search>a b</search>"),
        ("<answer>...</answer>", None, "<answer>...</answer>"),
        ("no tags", None, "no tags"),
    ],
)  # fmt: skip
def test_only_the_first_act_counts(text, act, kept):
    assert next_act(text) == act
    assert up_to_act(text) == kept
