"""Every decision and every outcome, written to SQLite off the hot path; journal_file.py has the tables.

The calls that record something append to a bounded queue and return. A thread of its own encodes what has gathered
and writes it in one transaction every `flush_s`, so a killed process loses what came since, and nothing before.
While the file is locked, full or gone, the thread keeps the records and tries again; past the queue's bounds
the oldest are dropped and counted. The sums of `totals` count every record, also the dropped ones.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from polyroute.errors import ConfigError, PolyrouteError
from polyroute.gateway import journal_file
from polyroute.gateway.journal_open import OpenFile
from polyroute.gateway.memory import Memory, Record, entry_of
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord
from polyroute.gateway.totals import Sums

log = logging.getLogger("polyroute.journal")

BATCH = 500  # records; a fuller queue is written without waiting for `flush_s`
REST_S = 0.0002  # between encoding and writing: on one core nothing is served meanwhile, and a pause in two is shorter
RETRY_S, RETRY_MOST_S = 0.05, 2.0  # wait after a failed attempt, doubled each time
CHECKPOINT_BYTES = 2 << 20  # of records, before the write-ahead log is copied into the database
STORES = ("features", "prompts", "nothing")


class JournalStatus(NamedTuple):
    """How the journal fares. ok: the last attempt to write worked; queued, written, dropped: records."""

    ok: bool
    reason: str
    queued: int
    written: int
    dropped: int


class Journal:
    """Takes records without waiting, finds them again, and sums them up. Any thread may call.

    path: the SQLite file; its folder is made. A damaged file is renamed, never deleted.
    capacity: records that may wait for the file, within `capacity_mb` of memory once encoded.
    flush_s: seconds between two writes: what a killed process loses at most, the write itself aside.
    store: `features` keeps the embedding of a request, `prompts` its text too, `nothing` neither.
    recent: decisions kept in memory for `find` and `recent`.
    Nothing here raises because of the file; `status` tells.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        capacity: int = 20_000,
        flush_s: float = 0.05,
        store: str = "features",
        recent: int = 2_000,
        capacity_mb: float = 64.0,
        clock: Callable[[], float] = time.time,
    ):
        if store not in STORES:
            raise ConfigError("journal.store", got=store, expected=f"one of {', '.join(STORES)}")
        self.path, self.capacity, self.flush_s, self.store = Path(path), capacity, flush_s, store
        self._capacity_bytes = int(capacity_mb * 2**20)
        self._memory = Memory(recent, self._fresh)
        self._lock = threading.Lock()  # guards everything down to _idle; held for a moment only
        self._queue: deque[Record] = deque()  # taken, not yet looked at
        self._seen: deque[Record] = deque()  # remembered and summed, not yet encoded
        self._pending: deque[journal_file.Row] = deque()  # encoded, not yet written
        self._pending_bytes = 0
        self._held = self._written = self._dropped = 0
        self._overflow = Sums()  # of records dropped before they were looked at
        self._trouble = "not opened yet"  # empty: the file works
        self._closing = self._closed = self._idle = False
        self._deadline = float("inf")
        self._wake, self._due, self._tried = threading.Event(), threading.Event(), threading.Event()
        self._file = OpenFile(self.path, self._memory, clock)  # the writer's, like everything below
        self._next = self._retry_at = 0.0  # monotonic times
        self._retry_s = RETRY_S
        self._since_checkpoint = 0
        self._threads = [
            threading.Thread(target=work, name=f"polyroute-journal-{name}", daemon=True)
            for name, work in (("write", self._run), ("sync", self._checkpoints))
        ]
        for thread in self._threads:
            thread.start()
        self._tried.wait(2.0)  # so that totals are whole from the first call on, unless the file is out of reach
        atexit.register(self.close)

    # ---- the hot path

    def decision(self, record: DecisionRecord) -> None:
        """Record a decision, before its outcome is known."""
        if record.prompt is not None and self.store != "prompts":
            record = msgspec.structs.replace(record, prompt=None)
        if record.embedding is not None and self.store == "nothing":
            record = msgspec.structs.replace(record, embedding=None)
        self._put(record)

    def outcome(self, record: OutcomeRecord) -> None:
        """Record what a decision yielded; a second outcome of the same decision replaces the first."""
        self._put(record)

    def feedback(self, record: FeedbackRecord) -> None:
        """Record a late outcome. Its quality counts for the model that served, if memory or a `find` before knows."""
        self._put(record)

    def _put(self, record: Record) -> None:
        with self._lock:
            if self._closed:
                self._dropped += 1
                return
            if self._held >= self.capacity:
                self._drop_oldest()
            self._queue.append(record)
            self._held += 1
            if self._idle or len(self._queue) == BATCH:
                self._wake.set()

    def _drop_oldest(self) -> None:
        if self._pending:
            self._pending_bytes -= self._pending.popleft().size
        elif self._seen:
            self._seen.popleft()
        elif self._queue:
            self._overflow.add_record(self._queue.popleft(), "")
        else:
            return  # all that is held is being written at this moment
        self._held -= 1
        self._dropped += 1

    # ---- reading

    def find(self, decision_id: str) -> dict[str, Any] | None:
        """{"decision", "outcome" or None, "feedback": []} of one decision; None if it is not known.

        Recent decisions come from memory, older ones from the file: call from a thread. A file that cannot be read
        now counts as not knowing; the log says why.
        """
        if (entry := self._memory.get(decision_id)) is not None:
            return entry.view()
        try:
            with contextlib.closing(journal_file.open_to_read(self.path)) as connection:
                found = journal_file.find(connection, decision_id)
            if found is None:
                return None
            entry = entry_of(found)
        except (PolyrouteError, sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            log.warning("cannot look up a decision: %s", error)
            return None
        self._memory.note(decision_id, entry.served_by)
        return entry.view()

    def recent(self, number: int) -> list[dict[str, Any]]:
        """The last decisions with their outcomes and feedback, newest first, from memory."""
        return [entry.view() for entry in self._memory.recent(number)]

    def totals(self) -> dict[str, Any]:
        """Cumulative counts, tokens, USD and quality, over this file's whole life; see totals.Sums.view."""
        return self._memory.sums().view()

    def status(self) -> JournalStatus:
        """Whether records reach the file, and how many wait, are written, are lost."""
        with self._lock:
            return JournalStatus(not self._trouble, self._trouble, self._held, self._written, self._dropped)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write everything that waits, for at most `timeout_s`; what the file did not take by then is dropped."""
        atexit.unregister(self.close)
        with self._lock:
            if not self._closing:
                self._closing, self._deadline = True, time.monotonic() + timeout_s
        self._wake.set()
        self._due.set()
        for thread in self._threads:
            thread.join(timeout_s + 2.0)

    # ---- the writer's thread

    def _fresh(self) -> tuple[Iterable[Record], Sums]:
        """The records that came since the last look, and the sums of those dropped unseen."""
        with self._lock:
            fresh, self._queue = self._queue, deque()
            self._seen.extend(fresh)
            overflow, self._overflow = self._overflow, Sums()
        return fresh, overflow

    def _run(self) -> None:
        self._attempt(self._file.open)
        self._tried.set()
        done = False
        while not done:
            self._pause()
            closing = self._closing
            self._next = time.monotonic() + self.flush_s
            self._encode()
            if not closing:
                time.sleep(REST_S)
            if closing or time.monotonic() >= self._retry_at:
                self._attempt(self._flush)
            done = closing and (not (self._held or self._trouble) or time.monotonic() >= self._deadline)
        self._finish()

    def _pause(self) -> None:
        """Until `flush_s` is over, a batch is full, or the journal closes; without end while nothing waits."""
        with self._lock:
            self._idle = not (self._held or self._trouble or self._closing)
        if self._idle:
            self._wake.wait()
            self._wake.clear()
            self._idle = False
            self._next = time.monotonic() + self.flush_s
        if not self._closing:
            self._wake.wait(max(0.0, self._next - time.monotonic()))
            self._wake.clear()
        elif self._trouble:
            time.sleep(RETRY_S)

    def _encode(self) -> None:
        """Turn what has been taken into rows, here, where nobody waits for it."""
        self._memory.look()
        with self._lock:
            seen, self._seen = self._seen, deque()
        rows = []
        for record in seen:
            try:
                rows.append(journal_file.row_of(record))
            except Exception as error:  # whatever a foreign value raises, the others go on
                log.warning("dropped a record that cannot be encoded (%s): %s", type(error).__name__, error)
        with self._lock:
            self._held -= len(seen) - len(rows)
            self._dropped += len(seen) - len(rows)
            self._pending.extend(rows)
            self._pending_bytes += sum(row.size for row in rows)
            while self._pending and self._pending_bytes > self._capacity_bytes:
                self._drop_oldest()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Open or flush; a failure is kept for `status` and sets the time of the next attempt."""
        try:
            step()
        except (PolyrouteError, sqlite3.Error, OSError) as error:
            self._file.close()
            if journal_file.is_damaged(error):
                self._file.set_aside(error)
            self._say(str(error) if isinstance(error, PolyrouteError) else f"{self.path}: {error}")
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)
        else:
            self._say("")
            self._retry_at, self._retry_s = 0.0, RETRY_S

    def _say(self, trouble: str) -> None:
        before = self._trouble if self._tried.is_set() else ""
        if trouble and not before:
            log.warning("records wait in memory, serving goes on: %s", trouble)
        elif before and not trouble:
            log.warning("writing again: %s", self.path)
        with self._lock:
            self._trouble = trouble

    def _flush(self) -> None:
        """Write all that is pending, batch by batch. Raises what stops it; no record is lost by that."""
        self._file.ready()
        while True:
            with self._lock:
                batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
                size = sum(row.size for row in batch)
                self._pending_bytes -= size
            unsaved = self._memory.take_unsaved()
            if not batch and not unsaved:
                break
            try:
                written = self._file.write(batch, unsaved)
            except BaseException:
                self._memory.give_back(unsaved)
                with self._lock:
                    self._pending.extendleft(reversed(batch))
                    self._pending_bytes += size
                raise
            with self._lock:
                self._held -= len(batch)
                self._written += written
                self._dropped += len(batch) - written
            self._since_checkpoint += size
        if self._since_checkpoint > CHECKPOINT_BYTES:
            self._since_checkpoint = 0
            self._due.set()

    def _finish(self) -> None:
        self._file.close()
        with self._lock:
            lost = self._held
            self._pending, self._seen, self._queue = deque(), deque(), deque()
            self._held, self._pending_bytes, self._closed = 0, 0, True
            self._dropped += lost
            reason, self._trouble = self._trouble, "closed"
        if lost:
            log.error("closed with %d records not written: %s", lost, reason)

    # ---- the second thread

    def _checkpoints(self) -> None:
        """Copy the write-ahead log into the database now and then: that waits for the disk, as writing must not."""
        while not self._closing:
            self._due.wait()
            self._due.clear()
            if not self._closing:
                with contextlib.suppress(sqlite3.Error):
                    journal_file.checkpoint(self.path)
