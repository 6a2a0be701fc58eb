"""What a language model that routes may write, and the strict reading of it.

A trace is `<think>...</think>`, then any number of `<search>Model: question</search><information>...</information>`
with more thoughts between, and last one `<answer>...</answer>`. Text between the tags is allowed, except before the
first and after the last. Names of models are compared without regard to case and surrounding space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from polyroute.errors import ReplyError

TAGS = ("think", "search", "information", "answer")
TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")
SEARCH = re.compile(r"<search>((?:(?!</?search>).)*)</search>", re.DOTALL)
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
PLACEHOLDERS = {"", "...", "…", "query", "question", "sub-query", "your query", "your question", "model", "modelname",
                "model name", "candidate llm", "llm-name", "answer", "your answer"}  # fmt: skip
EXPECTED = "<think>..</think>, then <search>Model: question</search> or one last <answer>..</answer>"


class Event(NamedTuple):
    """One tagged piece of a trace."""

    kind: str  # think search information answer
    text: str  # without surrounding space; of a search: the question
    model: str = ""  # of a search: the name as written


def parse_trace(text: str) -> list[Event]:
    """The tagged pieces in order. Raises: ReplyError where tags do not pair up or a search names nobody."""
    return list(_pieces(text))


def _pieces(text: str) -> Iterator[Event]:
    kind, start = "", 0
    for tag in TAG.finditer(text):
        closes, name = bool(tag[1]), tag[2]
        if not kind and closes:
            raise ReplyError(f"</{name}> closes nothing", text, expected=EXPECTED)
        if kind and not closes:
            raise ReplyError(f"<{name}> stands inside <{kind}>", text, expected=EXPECTED)
        if kind and name != kind:
            raise ReplyError(f"</{name}> closes <{kind}>", text, expected=EXPECTED)
        if closes:
            yield event_of(kind, text[start : tag.start()], text)
        kind, start = ("", 0) if closes else (name, tag.end())
    if kind:
        raise ReplyError(f"<{kind}> is never closed", text, expected=EXPECTED)


def event_of(kind: str, inside: str, text: str) -> Event:
    """One piece. A search must say `Model: question` with one colon."""
    inside = inside.strip()
    if kind != "search":
        return Event(kind, inside)
    if inside.count(":") != 1:
        raise ReplyError(f"a search has {inside.count(':')} colons instead of 1", text, expected=EXPECTED)
    model, question = (part.strip() for part in inside.split(":"))
    if is_placeholder(model) or is_placeholder(question):
        raise ReplyError("a search holds a placeholder", text, expected=EXPECTED)
    return Event(kind, question, model)


def is_placeholder(text: str) -> bool:
    """Whether a model copied the form instead of filling it in: empty, dots, `query`, `<question>`, `[model]`."""
    return text.strip().strip("<>[]{}()").strip().lower() in PLACEHOLDERS


def check_trace(text: str, names: Iterable[str], *, max_searches: int | None = None) -> list[Event]:
    """The events of a complete trace that breaks no rule. names: ids of the models that may be asked.

    Raises: ReplyError naming the first rule broken. What is right says nothing about the answer.
    """
    events = parse_trace(text)
    kinds = [event.kind for event in events]
    searches = [event for event in events if event.kind == "search"]
    known = {name.strip().lower() for name in names}
    foreign = [event.model for event in searches if event.model.lower() not in known]
    after = text[text.rfind("</answer>") + len("</answer>") :] if "</answer>" in text else ""
    follows = [kinds[i + 1 : i + 2] == ["information"] for i, kind in enumerate(kinds) if kind == "search"]
    rules = [
        ("it does not begin with <think>", not text.lstrip().startswith("<think>")),
        (f"it has {kinds.count('answer')} answers instead of 1", kinds.count("answer") != 1),
        ("the answer is not last", bool(kinds) and (kinds[-1] != "answer" or bool(after.strip()))),
        ("searches and information do not pair up", kinds.count("information") != len(searches) or not all(follows)),
        (f"it asks {foreign[0] if foreign else ''!r}, which is not in the pool", bool(foreign)),
        ("a thought or an answer is a placeholder",
         any(is_placeholder(e.text) for e in events if e.kind in ("think", "answer"))),
        (f"it searches {len(searches)} times", max_searches is not None and len(searches) > max_searches),
    ]  # fmt: skip
    for rule, broken in rules:
        if broken:
            raise ReplyError(rule, text, expected=EXPECTED)
    return events


def fault_of(text: str, names: Iterable[str], *, max_searches: int | None = None) -> str | None:
    """The first rule a trace breaks, in words, or None: what a format reward asks."""
    try:
        check_trace(text, names, max_searches=max_searches)
    except ReplyError as error:
        return error.rule
    return None


def next_act(text: str) -> Event | None:
    """The first complete search or answer in newly written text, or None: nothing usable.

    Whatever a model wrote behind it is its own invention (often the information it should have waited for).
    """
    tags = {"search": SEARCH, "answer": ANSWER}
    found = [(m.start(), kind, m[1]) for kind, tag in tags.items() if (m := tag.search(text))]
    if not found:
        return None
    _, kind, inside = min(found)
    try:
        act = event_of(kind, inside, text)
    except ReplyError:
        return None
    return None if kind == "answer" and is_placeholder(act.text) else act


def up_to_act(text: str) -> str:
    """Newly written text up to the end of its first search or answer; all of it where there is none."""
    ends = [m.end() for tag in (SEARCH, ANSWER) if (m := tag.search(text))]
    return text[: min(ends)] if ends else text


def read_mode(text: str, modes: Iterable[str]) -> str | None:
    """The mode a reply begins with, as `<instant>`, or None where it begins with anything else.

    `<classification>instant</classification>` is read as well. Names are compared without regard to case.
    """
    known = {mode.lower(): mode for mode in modes}
    found = re.match(r"\s*<(?:classification>\s*)?([\w-]+)\s*(?:</classification)?>", text, re.IGNORECASE)
    return known.get(found[1].lower()) if found else None


def parse_steps(text: str, *, most: int = 6) -> list[str]:
    """The sub-tasks of a decomposition: lines `1. ...`, numbered from 1 without a gap, each with something in it.

    Lines without a number go to the step above them; those before the first are a preface and dropped.
    Raises: ReplyError for none, for more than `most`, for a gap or an empty step.
    """
    expected = f"1 to {most} lines numbered 1. 2. 3."
    steps: list[str] = []
    for line in text.splitlines():
        found = re.match(r"\s*(?:step\s+)?(\d{1,2})\s*[.):]\s*(.*)", line, re.IGNORECASE)
        if found is None:
            if steps and line.strip():
                steps[-1] = f"{steps[-1]} {line.strip()}".strip()
        elif int(found[1]) != len(steps) + 1:
            raise ReplyError(f"number {found[1]} follows {len(steps)}", text, expected=expected)
        else:
            steps.append(found[2].strip())
    if not 1 <= len(steps) <= most:
        raise ReplyError(f"{len(steps)} steps", text, expected=expected)
    if any(is_placeholder(step) for step in steps):
        raise ReplyError("a step says nothing", text, expected=expected)
    return steps
