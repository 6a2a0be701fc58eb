"""Which conversation a request goes on with, and the price of moving it to another model.

Clients send the whole conversation each time and seldom name it. So it is known by a session header, or else by its
system prompt and first user message, and only where an answer already stands in it: two people who open with the same
words share a name until then, and were sent to the same model for the same reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from polyroute.policies.session import Session, Sessions, Sticky, StickyConfig, warmth_of
from polyroute.protocols import Policy
from polyroute.types import Candidate

REMEMBERED = 4_096  # conversations
OPENING = 4_000  # bytes of the system prompt and of the first user message that tell a conversation


class Thread(NamedTuple):
    """A request's place in its conversation."""

    key: str  # names the conversation; "" where there is none
    follows: bool = False  # an answer stands before this turn, or the client names the conversation
    in_tool_loop: bool = False  # the last message is a tool's result, on its way to the model that asked for it


NONE = Thread("")


def thread_of(messages: Sequence[Any], session: str | None, tenant: str | None) -> Thread:
    """The conversation of a decoded chat. session: from a header, where the client sends one."""
    follows = any(isinstance(m, dict) and m.get("role") in ("assistant", "model") for m in messages)
    last = messages[-1]
    in_tool_loop = follows and isinstance(last, dict) and is_tool_result(last)
    if session is not None:
        return Thread(f"{tenant}\n{session}", True, in_tool_loop)
    digest = hashlib.blake2b(repr(tenant).encode(), digest_size=16)
    for message in messages:
        digest.update(msgspec.json.encode(message.get("content"))[:OPENING])
        if message.get("role") == "user":
            break
    return Thread(digest.hexdigest(), follows, in_tool_loop)


def is_tool_result(message: dict[str, Any]) -> bool:
    """Is this message what a tool answered?"""
    if message.get("role") in ("tool", "function"):
        return True
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "tool_result" for p in content)


def stickiness(price: float) -> StickyConfig | None:
    """A move's price in utility, half of it for a warm cache; None for a price of 0."""
    if price <= 0:
        return None
    return StickyConfig(margin=0.0, handoff=0.0, stay_bias=price / 2, cache_weight=price / 2)


class Conversations:
    """Who serves which conversation; see policies/session.py."""

    def __init__(self, capacity: int = REMEMBERED):
        self.sessions = Sessions(capacity)

    def current(self, thread: Thread, now_s: float) -> Session | None:
        """Who served the last turn, where this is another turn of a conversation we know."""
        return self.sessions.look(thread.key, now_s) if thread.follows and thread.key else None

    def policy(
        self, inner: Policy, pool: Sequence[Candidate], thread: Thread, session: Session, now_s: float,
        config: StickyConfig, prompt_tokens: int | None,
    ) -> Policy:  # fmt: skip
        """The policy with the price of a move."""
        ids = [candidate.id for candidate in pool]
        warmth = warmth_of(session, prompt_tokens)
        return Sticky(ids, session, inner, now_s, warmth, thread.in_tool_loop, config)

    def served(self, thread: Thread, candidate: Candidate, now_s: float, tokens: int) -> None:
        """A turn was answered."""
        if thread.key:
            self.sessions.served(thread.key, candidate, now_s, tokens)
