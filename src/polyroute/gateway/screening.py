"""The guard stage of a request's road: the text guards read, their verdict, and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from polyroute.gateway.guards import CLEAN, Verdict, guarded_text
from polyroute.gateway.wire import BadRequestError, View, given
from polyroute.signals.needs import needs_of

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway


async def screen(gateway: Gateway, view: View) -> Verdict:
    """What the guards say of a request. Raises: BadRequestError (400, code guard_NAME) where one refuses it."""
    guards = gateway.guards
    if not guards:
        return CLEAN
    begin = perf_counter()
    messages: Any = msgspec.json.decode(view.messages) if given(view.messages) else None
    text = "\n".join(part for part in (guarded_text(messages), texts_of(view.prompt), texts_of(view.input)) if part)
    needs = needs_of(
        messages, tools=given(view.tools), response_format=view.response_format, modalities=view.modalities or ()
    )
    embedding = None
    if "novelty" in guards.guards:
        pending = gateway.brain.embed(text)
        embedding = await pending if isinstance(pending, Awaitable) else pending
    verdict = await guards.check_async(text, needs, embedding)
    gateway.telemetry.stage("guard", perf_counter() - begin)
    for name in verdict.flags:
        gateway.telemetry.guard(name, guards.guards[name].action)
    if verdict.refused is not None:
        raise BadRequestError(verdict.reason, code=f"guard_{verdict.refused}")
    return verdict


def texts_of(field: msgspec.Raw) -> str:
    """The text of a `prompt` or an `input`: a string, or a list of strings; token ids have none."""
    found: Any = msgspec.json.decode(field) if given(field) else None
    if isinstance(found, list):
        return "\n".join(part for part in found if isinstance(part, str))
    return found if isinstance(found, str) else ""
