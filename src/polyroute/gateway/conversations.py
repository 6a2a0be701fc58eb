"""Which conversation a request goes on with, and the price of moving it to another model.

Clients send the whole conversation each time and seldom name it. So it is known by a session header, or else by its
system prompt and first user message, and only where an answer already stands in it: two people who open with the same
words share a name until then, and were sent to the same model for the same reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from polyroute.policies.session import Session, Sessions, Sticky, StickyConfig, warmth_of
from polyroute.protocols import Policy
from polyroute.signals.conversation import ANSWERERS
from polyroute.signals.session import conversation_key, in_tool_loop, is_follow_up
from polyroute.types import Candidate

REMEMBERED = 4_096  # conversations


class Thread(NamedTuple):
    """A request's place in its conversation."""

    key: str  # names the conversation; "" where there is none
    follows: bool = False  # an answer stands before this turn, or the client names the conversation
    stays: bool = False  # a tool's result on its way to the model that asked, or a turn that says nothing of its own


NONE = Thread("")


def thread_of(messages: Sequence[Any], session: str | None, tenant: str | None) -> Thread:
    """The conversation of a decoded chat. session: from a header, where the client sends one."""
    answered = any(isinstance(m, dict) and m.get("role") in ANSWERERS for m in messages)
    if session is None and not answered:
        return Thread(conversation_key(messages, tenant=tenant or "") or "")
    stays = answered and (in_tool_loop(messages) or is_follow_up(messages))
    if session is not None:
        return Thread(f"{tenant}\n{session}", True, stays)
    return Thread(conversation_key(messages, tenant=tenant or "") or "", True, stays)


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
        return Sticky(ids, session, inner, now_s, warmth, thread.stays, config)

    def served(self, thread: Thread, candidate: Candidate, now_s: float, tokens: int) -> None:
        """A turn was answered."""
        if thread.key:
            self.sessions.served(thread.key, candidate, now_s, tokens)
