"""Watching a stream of server-sent events go by.

A stream is forwarded event by event; when the gateway asked for usage on its own account, what that added is taken out
again before the client sees it.
"""

from __future__ import annotations

import re

import msgspec

from polyroute.gateway.wire import Usage, drop_field, given, read_seen, read_usage

NULL_USAGE = re.compile(rb'\s*,\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')
LONGEST_EVENT = 4 << 20
EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")
FINISH = b'"finish_reason"'
A_STRING = re.compile(rb'\s*:\s*"')


class Stream:
    """Watches a server-sent event stream go by: usage, its end, errors; and hides usage the client did not ask for.

    hide_usage: the gateway asked for usage by itself. Without it the bytes stay as they are. Only whole events are
    forwarded, so that a stream cut inside one can still end in a readable error.
    """

    def __init__(self, *, hide_usage: bool):
        self.hide_usage = hide_usage
        self.carry = b""
        self.usage: Usage | None = None
        self.raw_usage: dict[str, object] | None = None
        self.done = False  # `[DONE]` went by
        self.finished = False  # a finish reason went by
        self.failed = False  # the upstream sent an error event
        self.num_events = 0

    def feed(self, chunk: bytes) -> bytes:
        """The complete events up to here, to be forwarded at once; empty while an event is incomplete."""
        if not self.carry and chunk.endswith(b"\n\n") and chunk.find(b"\n\n") == len(chunk) - 2 and b"\r" not in chunk:
            return self.event(chunk)  # one event, as most servers write them
        text = self.carry + chunk if self.carry else chunk
        last = 0
        out = []
        for end in event_ends(text):
            out.append(self.event(text[last:end]))
            last = end
        if len(text) - last > LONGEST_EVENT:  # no event stream we know; let it pass as it is
            out.append(text[last:])
            last = len(text)
        self.carry = text[last:]
        return b"".join(out) if self.hide_usage else text[:last]

    def flush(self) -> bytes:
        """What is left when the upstream has ended: an event without its blank line."""
        rest, self.carry = self.carry, b""
        return self.event(rest) if rest else b""

    def event(self, event: bytes) -> bytes:
        """One complete event, noted and returned as the client should see it."""
        self.num_events += 1
        if b'"usage"' in event or b'"error"' in event:
            return self.accounted(event)
        if b"[DONE]" in event and event[data_at(event) :].lstrip().startswith(b"[DONE]"):
            self.done = True
        elif not self.finished and finish_given(event):
            self.finished = True
        return event

    def accounted(self, event: bytes) -> bytes:
        """An event that may carry usage or an error."""
        self.finished = self.finished or finish_given(event)
        if (
            event.startswith(b"data:")
            and event.count(b'"usage"') == event.count(b'"usage":null') == 1
            and (b'"error"' not in event)
        ):  # nothing to read: most events of a stream that will tell its usage
            return NULL_USAGE.sub(b"", event, count=1) if self.hide_usage else event
        at = data_at(event)
        if at < 0:
            return event
        head, payload = event[:at], event[at:]
        payload, tail = payload.rstrip(), payload[len(payload.rstrip()) :]
        try:
            seen = read_seen(payload)
        except msgspec.MsgspecError:
            return event
        if given(seen.error):
            self.failed = True
        usage, raw = read_usage(seen.usage)
        if usage is not None:
            self.usage, self.raw_usage = usage, raw
        if not self.hide_usage:
            return event
        if usage is None:
            return NULL_USAGE.sub(b"", event, count=1)
        if not bytes(seen.choices).strip(b"[] \t\r\n"):
            return b""
        return head + b" " + drop_field(payload.lstrip(), "usage") + tail


def data_at(event: bytes) -> int:
    """Where the value of an event's first data line begins, also behind comments and other fields; -1: nowhere."""
    if event.startswith(b"data:"):
        return 5
    at = event.find(b"\ndata:")
    return at + 6 if at >= 0 else -1


def event_ends(text: bytes) -> list[int]:
    """Where each complete event of a stream ends, its blank line included."""
    if b"\r" in text:
        return [end.end() for end in EVENT_END.finditer(text)]
    ends = []
    at = text.find(b"\n\n")  # ten times as fast as the pattern, and nearly every stream is written so
    while at >= 0:
        ends.append(at + 2)
        at = text.find(b"\n\n", at + 2)
    return ends


def finish_given(event: bytes) -> bool:
    """Some choice of this event says why it ended."""
    at = event.find(FINISH)
    while at >= 0:
        at += len(FINISH)
        if not event.startswith(b":null", at) and A_STRING.match(event, at) is not None:
            return True
        at = event.find(FINISH, at)
    return False
