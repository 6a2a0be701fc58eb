"""What a request tells before it is answered: its text, needs, tokens, conversation, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from polyroute.gateway.conversations import NONE, Thread, thread_of
from polyroute.gateway.guards import CLEAN, Verdict
from polyroute.gateway.wire import BadRequestError, View, given
from polyroute.signals.conversation import routing_text
from polyroute.signals.needs import needs_of
from polyroute.signals.tokens import count_tokens
from polyroute.types import Array, Estimate, Estimates, Query

if TYPE_CHECKING:
    from polyroute.gateway.choice import ServedPolicy


class Asked(NamedTuple):
    """One request on its way to a decision."""

    view: View
    policy: ServedPolicy
    requested: str  # the model name the client sent
    endpoint: str
    request_id: str = ""
    trade_off: float | None = None  # in place of the policy's own
    session: str | None = None
    tenant: str | None = None
    verdict: Verdict = CLEAN
    dry_run: bool = False
    readable: bool = False  # its answer may be held back and read, where the policy does so


class Signals(NamedTuple):
    """What a request tells before it is answered."""

    query: Query
    thread: Thread
    estimates: Estimates | None = None  # [1, m] of the router, where it was asked already
    stored: bytes | None = None  # the embedding as the journal keeps it


def read_signals(
    view: View, endpoint: str, session: str | None = None, tenant: str | None = None
) -> tuple[str, frozenset[str], int, Thread]:
    """(text to route on, capabilities needed, prompt tokens, conversation).

    Raises: BadRequestError naming the field at fault.
    """
    if endpoint == "completions" or (endpoint == "route" and given(view.prompt)):
        prompt: Any = msgspec.json.decode(view.prompt) if given(view.prompt) else None
        if isinstance(prompt, list) and all(isinstance(part, str) for part in prompt):
            prompt = "\n".join(prompt)
        if not isinstance(prompt, str):
            raise BadRequestError("prompt: expected a string to route on, got none. Name a model instead.", "prompt")
        return routing_text([{"role": "user", "content": prompt}]), frozenset(), count_tokens(prompt), NONE
    messages: Any = msgspec.json.decode(view.messages) if given(view.messages) else None
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages: expected a list of one or more messages.", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequestError(f"messages[{i}]: expected an object with a role.", f"messages[{i}]")
    needs = needs_of(
        messages, tools=given(view.tools), modalities=view.modalities or (),
        response_format=view.response_format if given(view.response_format) else None,
    )  # fmt: skip
    num_tokens = count_tokens(bytes(view.messages))
    num_tokens += count_tokens(bytes(view.tools)) if given(view.tools) else 0
    return routing_text(messages), needs, num_tokens, thread_of(messages, session, tenant)


def half(embedding: Array) -> Array:
    """float16, as the journal keeps embeddings."""
    return np.asarray(embedding, dtype=np.float16)


def with_embedding(query: Query, embedding: Array) -> Query:
    return Query(query.id, query.text, embedding, query.needs, query.num_tokens, query.max_output)


def of_row(estimates: Estimates, i: int) -> Estimates:
    """What is estimated of the i-th query alone, [1, m] each."""
    at = slice(i, i + 1)
    return {name: Estimate(e.mean[at], None if e.std is None else e.std[at]) for name, e in estimates.items()}


def of_rows(rows: Sequence[Estimates | None]) -> Estimates | None:
    """What is estimated of queries, [n, m] each, from what is estimated of each alone; None where one has nothing."""
    first = rows[0]
    if len(rows) == 1 or first is None:
        return first
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    return {
        name: Estimate(
            np.concatenate([row[name].mean for row in known]),
            None if one.std is None else np.concatenate([row[name].std for row in known]),
        )
        for name, one in first.items()
    }
