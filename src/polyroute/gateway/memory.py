"""What the journal keeps at hand: the last decisions with their outcomes, and the running sums."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from polyroute.gateway.journal_file import Found
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord
from polyroute.gateway.totals import Sums

Record: TypeAlias = DecisionRecord | OutcomeRecord | FeedbackRecord
REMEMBERED_FEEDBACK = 20  # reports a recent decision keeps; the file has all of them


class Entry:
    """One decision and what is known of it. Records are replaced, never changed, so that readers need no lock."""

    __slots__ = ("decision", "feedback", "outcome")

    def __init__(self, decision: DecisionRecord):
        self.decision = decision
        self.outcome: OutcomeRecord | None = None
        self.feedback: tuple[FeedbackRecord, ...] = ()

    @property
    def served_by(self) -> str:
        """The model whose answer a report of quality is about."""
        return self.decision.selected if self.outcome is None else self.outcome.selected

    def view(self) -> dict[str, Any]:
        """As plain data, without the embedding."""
        plain = msgspec.to_builtins(msgspec.structs.replace(self.decision, embedding=None))
        del plain["embedding"]
        return {
            "decision": plain,
            "outcome": msgspec.to_builtins(self.outcome),
            "feedback": msgspec.to_builtins(list(self.feedback)),
        }


def entry_of(found: Found) -> Entry:
    """Records read from the file, as memory holds them. Raises: msgspec.MsgspecError for what is not a record."""
    entry = Entry(msgspec.json.decode(found.decision, type=DecisionRecord))
    if found.outcome is not None:
        entry.outcome = msgspec.json.decode(found.outcome, type=OutcomeRecord)
    entry.feedback = tuple(msgspec.json.decode(report, type=FeedbackRecord) for report in found.feedback)
    return entry


class Memory:
    """The last `capacity` decisions, and sums over all of them since the file began. Any thread may call.

    fresh: gives the records that came since it was last called; read before every look, so nothing is ever missing.
    """

    def __init__(self, capacity: int, fresh: Callable[[], tuple[Iterable[Record], Sums]]):
        self.capacity, self._fresh = capacity, fresh
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._served_by: OrderedDict[str, str] = OrderedDict()  # older decisions looked up in the file -> model
        self._sums = Sums()  # of the file when it was opened, and of this process since
        self._unsaved = Sums()  # the part of _sums that the file does not have yet

    def look(self) -> None:
        """Take in what came since the last look."""
        with self._lock:
            self._look()

    def get(self, decision_id: str) -> Entry | None:
        """A recent decision."""
        with self._lock:
            self._look()
            return self._recent.get(decision_id)

    def recent(self, number: int) -> list[Entry]:
        """The last decisions, newest first."""
        with self._lock:
            self._look()
            return list(islice(reversed(self._recent.values()), number))

    def sums(self) -> Sums:
        """A copy of the running sums."""
        with self._lock:
            self._look()
            return Sums(self._sums)

    def note(self, decision_id: str, served_by: str) -> None:
        """Remember which model an older decision went to, for reports of quality that may follow."""
        with self._lock:
            remember(self._served_by, decision_id, served_by, self.capacity)

    def take_unsaved(self) -> Sums:
        """What the file lacks; it counts as saved unless it is given back."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, Sums()
            return unsaved

    def give_back(self, unsaved: Sums) -> None:
        """The file did not take these."""
        with self._lock:
            self._unsaved.merge(unsaved)

    def load(self, sums: Sums, earlier: Sequence[Entry]) -> None:
        """Start from what the file holds: sums, and its last decisions, oldest first."""
        with self._lock:
            self._sums.merge(sums)
            since, self._recent = self._recent, OrderedDict()
            for entry in (*earlier, *since.values()):
                remember(self._recent, entry.decision.id, entry, self.capacity)

    def begin_again(self) -> None:
        """The file was lost: the next one is to start with all sums known."""
        with self._lock:
            self._unsaved = Sums(self._sums)

    def _look(self) -> None:
        fresh, news = self._fresh()
        for record in fresh:
            news.add_record(record, self._take_in(record, news))
        if news:
            self._sums.merge(news)
            self._unsaved.merge(news)

    def _take_in(self, record: Record, news: Sums) -> str:
        """Remember a record. Returns the model that a report of quality is about; empty where it is not known."""
        if isinstance(record, DecisionRecord):
            remember(self._recent, record.id, Entry(record), self.capacity)
            return record.selected
        entry = self._recent.get(record.decision_id)
        if entry is None:
            return self._served_by.get(record.decision_id, "")
        if isinstance(record, FeedbackRecord):
            entry.feedback = (*entry.feedback, record)[-REMEMBERED_FEEDBACK:]
        else:
            if entry.outcome is not None:  # a second outcome replaces the first, in the sums too
                news.add_outcome(entry.outcome, -1.0)
            entry.outcome = record
        return entry.served_by


def remember(table: OrderedDict[str, Any], key: str, value: object, capacity: int) -> None:
    """Add to a table that forgets its oldest rows."""
    table[key] = value
    if len(table) > capacity:
        table.popitem(last=False)
