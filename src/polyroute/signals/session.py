"""What a request says of its conversation: which one it is, whether tools are at work, whether the turn adds anything.

A client sends the whole history each time, so all of this is read off one request. It feeds `policies/session.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from polyroute.signals.conversation import LIST, OBJECT, USERS, stripped, text_of

KEY_BYTES = 12
FIRST = 2_000  # characters of the first turns that tell conversations apart
LONGEST_REPLY = 8  # words; a longer turn says something of its own
WORD = re.compile(r"[^\W_]+")
SUM = re.compile(r"\d\s*[-+*/x×÷^=<>%]\s*\d")

# Words of turns that only answer or push on. A turn made of these alone needs what the turns before it needed.
REPLIES = frozenset(
    WORD.findall("""
a absolutely again ahead all also am and another any anything are as at b be both c can carry change changes
continue cool correct could d did do does done either else exactly fine finish first fix for from full further give
go going good got great had has have he hello help here hey hi how i if in instead is it its just keep know last
later less let like looks make maybe me mean more much my need next nice no nope not now of off oh ok okay on one
ones option or other out perfect please proceed quite rather really redo repeat retry right same second see she
should show so some sorry start still stop sure tell than thank thanks that the them then there these they thing
things third this those though to too try two u undo understand understood up us use very wait want was way we well
were what when where which who why will with won work works would wrong yeah yep yes you your ja nein gut bitte
danke weiter mach das es oui non merci vas si gracias sigue vale hazlo da nyet да нет хорошо дальше
是 好 好的 继续 可以 谢谢
はい いいえ お願いします 続けて
""")
)


def conversation_key(messages: object, *, tenant: str = "") -> str | None:
    """A name for the conversation that stays the same from turn to turn; None when nobody wrote anything.

    messages: as for `routing_text`. Made of the tenant and of what opens the conversation: texts before the first user
    turn, and that turn. Two conversations that open alike share a key, so a client's own session id comes first.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    opening: list[str] = []
    for message in messages if isinstance(messages, LIST) and not isinstance(messages, bytes) else ():
        if not isinstance(message, OBJECT):
            continue
        text = text_of(message.get("content"))[:FIRST]
        opening.append(text)
        if message.get("role") in USERS and text.strip():
            digest = hashlib.blake2b("\x1f".join([tenant, *opening]).encode("utf-8", "replace"), digest_size=KEY_BYTES)
            return digest.hexdigest()
    return None


def in_tool_loop(messages: object) -> bool:
    """Whether the last message hands back what a tool found: the one that asked for it should read it.

    Knows role tool or function, content parts of type tool_result, and items of type function_call_output.
    """
    if not isinstance(messages, LIST) or isinstance(messages, str | bytes) or not messages:
        return False
    last = messages[-1]
    if not isinstance(last, OBJECT):
        return False
    if last.get("role") in ("tool", "function") or last.get("type") in ("function_call_output", "tool_result"):
        return True
    content = last.get("content")
    parts = content if isinstance(content, list | tuple) else ()
    return any(isinstance(part, OBJECT) and part.get("type") == "tool_result" for part in parts)


def is_follow_up(messages: object) -> bool:
    """Whether somebody has answered already and the last user turn only goes along with it: "yes, do it".

    Such a turn says nothing of what the conversation needs: give `keep_or_switch` a trust of 0. A turn of more than
    `LONGEST_REPLY` words, or with one word of its own ("prove it"), is not one. Other languages than the few listed are
    taken to say something.
    """
    if not isinstance(messages, LIST) or isinstance(messages, str | bytes):
        return False
    roles = [m.get("role") for m in messages if isinstance(m, OBJECT)]
    if not any(role in ("assistant", "model", "ai") for role in roles):
        return False
    return only_replies(last_user_text(messages))


def only_replies(text: str) -> bool:
    """Whether a turn is made of `REPLIES`, numbers and punctuation alone; also an empty one."""
    if SUM.search(text):
        return False  # a calculation, though made of numbers alone
    words = WORD.findall(text.lower().replace("'", "").replace("\u2019", ""))
    return len(words) <= LONGEST_REPLY and all(w in REPLIES or w.isdigit() for w in words)


def last_user_text(messages: Sequence[Any]) -> str:
    """What a person wrote last, without what a harness added."""
    for message in reversed(messages):
        if isinstance(message, OBJECT) and message.get("role") in USERS:
            text = stripped(text_of(message.get("content")))
            if text:
                return text
    return ""
