"""The journal's file as its one writer holds it: opened, again where it was replaced, set aside where damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from polyroute.gateway import journal_file
from polyroute.gateway.memory import Memory, entry_of
from polyroute.gateway.totals import Sums

log = logging.getLogger("polyroute.journal")

RELOADED = 200  # decisions of earlier runs that `recent` starts with


class OpenFile:
    """One connection to the file at `path`, for one thread. What it held is loaded into `memory` once."""

    def __init__(self, path: Path, memory: Memory, clock: Callable[[], float]):
        self.path, self.memory, self.clock = path, memory, clock
        self.connection: sqlite3.Connection | None = None
        self.inode = 0
        self.loaded = False

    def open(self) -> None:
        """Open the file anew. Raises: PolyrouteError, sqlite3.Error or OSError where that cannot be."""
        connection = self.connection = journal_file.open_to_write(self.path, self.clock())
        self.inode = os.stat(self.path).st_ino
        if not self.loaded:
            earlier = [entry_of(found) for _, found in journal_file.latest(connection, RELOADED)]
            self.memory.load(journal_file.read_sums(connection), earlier)
            self.loaded = True

    def ready(self) -> None:
        """Open it where it is not, or is no longer the one at `path`. Raises as `open` does."""
        if self.connection is not None and not self.is_current():
            self.close()
        if self.connection is None:
            self.open()

    def is_current(self) -> bool:
        """Whether the open file is still the one at `path`; a deleted file would take rows that nobody will see."""
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def write(self, batch: list[journal_file.Row], unsaved: Sums) -> int:
        """Number of rows written. Rows that SQLite cannot hold are left out, and the others are written."""
        assert self.connection is not None
        try:
            journal_file.write(self.connection, batch, unsaved)
        except journal_file.UNWRITABLE as error:
            log.warning("dropped records that cannot be written (%s): %s", type(error).__name__, error)
            batch = journal_file.writable(self.connection, batch)
            journal_file.write(self.connection, batch, unsaved)
        return len(batch)

    def set_aside(self, error: BaseException) -> None:
        """Rename a damaged file, so that a new one begins; nothing is deleted."""
        try:
            kept = journal_file.set_aside(self.path, self.clock())
        except OSError as problem:
            log.warning("%s is damaged (%s) and cannot be renamed: %s", self.path, error, problem)
            return
        log.warning("%s was damaged (%s); it is kept as %s and a new journal begins", self.path, error, kept)
        self.memory.begin_again()

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
