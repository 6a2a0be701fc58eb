"""The text a conversation is routed on: its last turns, without what a harness added.

Routing on the last message alone sends a bare "yes, do it" to the cheapest model in the middle of a task; routing on
everything lets the harness' system prompt, tool results and pasted files drown the question. So:

- What counts is what a person wrote: user turns, and a little of the answers between them. System prompts, tool
  calls and tool results are left out, so the text stays the same all through a tool loop.
- The last user turn comes first and keeps its length; older turns share as much again, the nearest most, and more
  when the last turn is short.
- Blocks that harnesses add to user turns are dropped; pasted files, long tagged blocks and encoded data are sampled.

A single user turn that fits comes back as it was written, so that a router fitted on bare questions sees the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CAP = 2_000  # characters of the text to route on
READ = 20_000  # characters read of one message: half from its head, half from its tail
TURNS = 60  # turns looked at, counted from the last; those of tools and systems not counted
DEPTH = 4  # how deep lists of parts nest
SMALLEST = 24  # characters; a smaller piece of an older turn says nothing
SHORT = 600  # characters of context for an empty last turn; each character written takes the place of TRADE
TRADE = 12
WORD = 16  # characters of a word cut in two that are left out

OBJECT, LIST = (dict, Mapping), (list, Sequence)  # what JSON yields comes first: to ask an abstract class takes long
USERS = frozenset({"user", "human"})
ANSWERERS = frozenset({"assistant", "model", "ai"})
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})

# Blocks <name>...</name> that harnesses put into user turns. DROP: theirs. ASKS: the person's words, in a wrapper.
DROP = frozenset({
    "additional_data", "agent_skills", "available_skills", "available_tools", "bash-stderr", "bash-stdout",
    "command-message", "command-name", "cursor_rules_context", "custom_instructions", "editorcontext", "env",
    "environment_context", "environment_details", "environment_info", "functions", "git_status",
    "ide_diagnostics", "ide_opened_file", "ide_selection", "local-command-caveat", "local-command-stderr",
    "local-command-stdout", "new-diagnostics", "open_and_recently_viewed_files", "persisted-output",
    "project_layout", "recently_viewed_files", "reminderinstructions", "repository_info", "runtime_information",
    "session_context", "skills_instructions", "system-reminder", "system_reminder", "task-notification",
    "tool_definitions", "tools", "turn_aborted", "user-prompt-submit-hook", "user_info", "user_instructions",
    "user_rules", "workspace_info",
})  # fmt: skip
ASKS = frozenset({"task", "user_query", "user_message", "user_request", "user_input", "userrequest", "feedback"})

OPEN_ENDED = frozenset({"system-reminder", "environment_details"})  # dropped to the end where the end was cut off
MAX_TAGS = 200  # of one turn; the rest is left as it is

TAG = re.compile(r"<([A-Za-z][\w-]{1,40})(?: [^<>\n]{0,200})?>")
LONG_WORD = 160  # characters without a space that are data, not a word
ENCODED = re.compile(rf"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{{{LONG_WORD},}}")
PASTED = 600  # characters a fenced or tagged block may have before it is sampled


def routing_text(messages: object, cap: int = CAP) -> str:
    """At most `cap` characters to route on; empty when nobody wrote anything.

    messages: [{"role", "content"}, ...] of a chat, decoded; content is a text, or a list of parts, or anything else.
    Shapes nobody knows are ignored, and nothing fails. A bare text counts as one user turn. Without any user turn the
    last text of any role is taken. Costs tens of microseconds for a short chat; a message is read only in part beyond
    READ characters, so a body of a megabyte costs about as much as one of 100 kB.
    """
    if isinstance(messages, str):
        return sample(stripped(messages), cap)
    if not isinstance(messages, LIST) or isinstance(messages, bytes):
        return ""
    turns = written(messages)
    last = next((text for by_user, text in turns if by_user), "")
    if not last:
        return sample(last_text(messages), cap)
    room, smallest = context_room(last, cap)
    context, used = [], 0
    for by_user, text in turns:
        if room < smallest:
            break
        share = max(room // 2, smallest) if by_user else room // 4
        if share >= smallest:
            piece = sample(text, share)
            context.append(piece)
            used += len(piece) + 1
            room -= len(piece) + 1
    return "\n".join([sample(last, cap - used), *context])


def context_room(last: str, cap: int) -> tuple[int, int]:
    """Characters that older turns may fill beside this last one, and the fewest that are worth a piece.

    As many as the last turn has, more beside a short one. Ideographs say about three times as much a character.
    """
    seen = last[:SHORT]
    density = 3 if not seen.isascii() and sum(c >= "\u2e80" for c in seen) > len(seen) / 2 else 1
    length = len(last) * density
    return min(max(length, SHORT - TRADE * length), cap // 2) // density, SMALLEST // density


def written(messages: Sequence[Any]) -> Iterator[tuple[bool, str]]:
    """(was it the user?, text) of the turns from the last user turn backwards; empty turns are passed over.

    Answers after the last user turn belong to a tool loop that is still going on: left out.
    """
    seen_user, looked_at = False, 0
    for message in reversed(messages):
        role = message.get("role") if isinstance(message, OBJECT) else None
        by_user = role in USERS if isinstance(role, str) else False
        if by_user or (seen_user and isinstance(role, str) and role in ANSWERERS):
            text = stripped(text_of(message.get("content")))
            if text:
                seen_user = True
                yield by_user, text
            looked_at += 1
            if looked_at == TURNS:
                return


def last_text(messages: Sequence[Any]) -> str:
    """The last text of any role, for a conversation without a user."""
    for message in reversed(messages):
        if isinstance(message, OBJECT) and (text := text_of(message.get("content")).strip()):
            return text
    return ""


def text_of(content: object, depth: int = DEPTH) -> str:
    """The written text in a message's content: texts and text parts; pictures, sound and tool results have none."""
    if isinstance(content, str):
        return clipped(content)
    if isinstance(content, OBJECT):
        content = [content]
    if depth == 0 or not isinstance(content, list | tuple):
        return ""
    found = []
    for part in content:
        if isinstance(part, OBJECT):
            kind = part.get("type", "text")
            part = part.get("text") if isinstance(kind, str) and kind in TEXT_PARTS else None
        if isinstance(part, str | list | tuple) and (text := text_of(part, depth - 1)):
            found.append(text)
    return clipped("\n".join(found))


def clipped(text: str) -> str:
    """The text, or the head and tail of a very long one."""
    return text if len(text) <= READ else text[: READ // 2] + "\n" + text[-READ // 2 :]


def stripped(text: str) -> str:
    """A turn without what its harness added, and with pasted blocks and encoded data sampled."""
    text = clipped(text)
    if "<" in text:
        text = without_blocks(text)
    if has_long_word(text):
        text = ENCODED.sub(" ", text)
    if len(text) > PASTED and text.count("```") > 1:
        text = with_short_fences(text)
    return text.strip()


def has_long_word(text: str) -> bool:
    """Are there LONG_WORD characters without a space? Looks at a few places only."""
    at = 0
    while at + LONG_WORD <= len(text):
        at = text.rfind(" ", at, at + LONG_WORD) + 1
        if at == 0:
            return True
    return False


def without_blocks(text: str) -> str:
    """Drop tagged blocks that are a harness' own, unwrap those that hold the request, sample other long ones."""
    pieces: list[str] = []
    position, unclosed = 0, set[str]()
    for _ in range(MAX_TAGS):
        tag = TAG.search(text, position)
        if tag is None:
            break
        pieces.append(text[position : tag.start()])
        name, position = tag.group(1), tag.end()
        end = -1 if name in unclosed else text.find(f"</{name}>", position)
        if end < 0:
            if name in OPEN_ENDED:
                return "".join(pieces)
            unclosed.add(name)  # only a "<" in a text, or in code
            pieces.append(tag.group())
            continue
        after = end + len(name) + 3
        if name.lower() in ASKS:
            pieces.append("\n" + without_blocks(text[position:end]) + "\n")
        elif name.lower() not in DROP and name != "INSTRUCTIONS":
            pieces.append(sample(text[tag.start() : after], PASTED))
        position = after
    pieces.append(text[position:])
    return "".join(pieces)


def with_short_fences(text: str) -> str:
    """The text with each long ``` block sampled."""
    pieces = text.split("```")
    pieces[1::2] = [sample(block, PASTED) for block in pieces[1::2]]
    return "```".join(pieces)


def sample(text: str, cap: int) -> str:
    """The text, or its head, middle and tail in `cap` characters: half, a fifth, and the rest. The same each time."""
    if len(text) <= cap:
        return text
    if cap < 3 * SMALLEST:
        half = max(cap - 1, 0) // 2
        return f"{text[:half]}\n{text[len(text) - half :]}" if half else ""
    head, middle = cap // 2, cap // 5
    tail, start = cap - head - middle - 2, (len(text) - middle) // 2
    inner = without_first_word(without_last_word(text[start : start + middle]))
    return f"{without_last_word(text[:head])}\n{inner}\n{without_first_word(text[-tail:])}"


def without_last_word(piece: str) -> str:
    """The piece up to its last space, where that is near: a word cut in two means something else."""
    at = piece.rfind(" ", len(piece) - WORD)
    return piece if at < 0 else piece[:at]


def without_first_word(piece: str) -> str:
    return piece[piece.find(" ", 0, WORD) + 1 :]
