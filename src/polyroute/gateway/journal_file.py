"""The journal on disk: one SQLite file that other programs may read while the gateway writes it.

Schema, version 2 (`PRAGMA user_version` = 2, `PRAGMA application_id` = APPLICATION_ID). All times are seconds since
the epoch, costs USD, latencies seconds. `record` is always the whole record as JSON (records.py), without `embedding`.
`decisions` and `outcomes` are views: their tables, `decision_records` and `outcome_records`, hold only the key, `time`,
`embedding` and `record`, and every other column is read out of `record`. In version 1 they were tables with all these
columns: readers take either, a writer converts.

    decisions   id TEXT PRIMARY KEY, time REAL, request_id TEXT, endpoint TEXT, requested TEXT, policy TEXT,
                selected TEXT, propensity REAL, router TEXT, artefact TEXT, features TEXT,
                prompt_tokens INTEGER (estimated before the call), session TEXT, tenant TEXT, dry_run INTEGER (0 or 1),
                embedding BLOB (float16 [d], little-endian, from the featuriser named in `features`; or NULL),
                record TEXT (JSON; `candidates` holds every candidate with mean, std, utility, refused)
    outcomes    decision_id TEXT PRIMARY KEY, time REAL, status INTEGER, state TEXT (ok error cut cancelled),
                selected TEXT, attempts INTEGER, latency_s REAL, first_byte_s REAL, prompt_tokens INTEGER,
                cached_tokens INTEGER, completion_tokens INTEGER, cost_usd REAL, dearest_usd REAL, error TEXT,
                record TEXT (JSON; `usage` as the backend sent it)
    feedback    decision_id TEXT, time REAL, source TEXT, quality REAL (NULL where the report has none),
                record TEXT (JSON; `metrics` holds every metric reported); many a decision
    totals      name TEXT, label TEXT, value REAL, PRIMARY KEY (name, label): running sums since `meta.created`, also of
                rows pruned since; added to by every process that writes (see totals.py)
    meta        key TEXT PRIMARY KEY, value TEXT: schema, created (seconds since the epoch)

A decision may lack its outcome (still running, or lost with the process) and an outcome its decision (pruned).
Readers open the file with `mode=ro`; the rows of one request may arrive in two transactions.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from polyroute.errors import JournalError
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord
from polyroute.gateway.totals import Sums, TotalKey

VERSION = 2
READABLE = (1, 2)
APPLICATION_ID = 0x706F6C79  # "poly"

DECIDED = {
    "request_id": "TEXT", "endpoint": "TEXT", "requested": "TEXT", "policy": "TEXT", "selected": "TEXT",
    "propensity": "REAL", "router": "TEXT", "artefact": "TEXT", "features": "TEXT", "prompt_tokens": "INTEGER",
    "session": "TEXT", "tenant": "TEXT", "dry_run": "INTEGER",
}  # fmt: skip
YIELDED = {
    "status": "INTEGER", "state": "TEXT", "selected": "TEXT", "attempts": "INTEGER", "latency_s": "REAL",
    "first_byte_s": "REAL", "prompt_tokens": "INTEGER", "cached_tokens": "INTEGER", "completion_tokens": "INTEGER",
    "cost_usd": "REAL", "dearest_usd": "REAL", "error": "TEXT",
}  # fmt: skip


def read_out(columns: Mapping[str, str]) -> str:
    """Columns of a view that are taken from `record` by whoever reads them."""
    return ", ".join(f"CAST(json_extract(record, '$.{name}') AS {kind}) AS {name}" for name, kind in columns.items())


TABLES = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    name TEXT NOT NULL, label TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, label)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decision_records (
    id TEXT PRIMARY KEY, time REAL NOT NULL, embedding BLOB, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outcome_records (decision_id TEXT PRIMARY KEY, time REAL NOT NULL, record TEXT NOT NULL);
CREATE VIEW IF NOT EXISTS decisions AS
    SELECT rowid AS rowid, id, time, embedding, record, {read_out(DECIDED)} FROM decision_records;
CREATE VIEW IF NOT EXISTS outcomes AS
    SELECT rowid AS rowid, decision_id, time, record, {read_out(YIELDED)} FROM outcome_records;
CREATE TABLE IF NOT EXISTS feedback (
    decision_id TEXT NOT NULL, time REAL NOT NULL, source TEXT NOT NULL, quality REAL, record TEXT NOT NULL,
    UNIQUE (decision_id, time, record));
CREATE INDEX IF NOT EXISTS decision_records_time ON decision_records (time);
CREATE INDEX IF NOT EXISTS outcome_records_time ON outcome_records (time);
CREATE INDEX IF NOT EXISTS feedback_time ON feedback (time)"""

# The same row written twice is one row: a batch may be retried after an error that came too late to matter.
STORED = {
    "decision_records": ("id", "time", "embedding", "record"),
    "outcome_records": ("decision_id", "time", "record"),
    "feedback": ("decision_id", "time", "source", "quality", "record"),
}
INSERT = {
    table: f"INSERT OR {'IGNORE' if table == 'feedback' else 'REPLACE'} INTO {table} ({', '.join(names)}) VALUES"
    for table, names in STORED.items()
}
TUPLE = {table: f"({', '.join('?' * len(names))})" for table, names in STORED.items()}
TOGETHER = 100  # rows one statement inserts: each statement hands the interpreter's lock back and forth once
ADD_TOTAL = """INSERT INTO totals VALUES (?, ?, ?)
    ON CONFLICT (name, label) DO UPDATE SET value = value + excluded.value"""

# What sqlite3 raises for a value that no table can hold, as opposed to a file that cannot be written.
UNWRITABLE = (
    sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError,
    OverflowError, ValueError,
)  # fmt: skip
LOCKED_S = 0.2  # how long one attempt waits for another writer


class Row(msgspec.Struct, frozen=True, gc=False):
    """A record as it goes into its table. size: bytes it holds in memory, roughly."""

    table: str
    values: tuple[Any, ...]
    size: int


def row_of(record: DecisionRecord | OutcomeRecord | FeedbackRecord) -> Row:
    """The row a record becomes. Raises: whatever msgspec finds that JSON or UTF-8 cannot hold."""
    if isinstance(record, DecisionRecord):
        embedding = record.embedding
        plain = msgspec.structs.replace(record, embedding=None) if embedding else record
        text = msgspec.json.encode(plain).decode()
        size = len(text) + len(embedding or b"") + 400
        return Row("decision_records", (record.id, record.time, embedding, text), size)
    text = msgspec.json.encode(record).decode()
    if isinstance(record, OutcomeRecord):
        return Row("outcome_records", (record.decision_id, record.time, text), len(text) + 400)
    f = record
    return Row("feedback", (f.decision_id, f.time, f.source, f.metrics.get("quality"), text), len(text) + 200)


def open_to_write(path: Path, now: float) -> sqlite3.Connection:
    """Open the journal, or make it, readable by its owner only.

    Raises: JournalError if the file is something else's; sqlite3.Error or OSError if it cannot be opened now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None, check_same_thread=False)
    try:
        if identify(connection, path) == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that prune can give space back
        connection.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a commit is in the kernel's hands when it returns, which a killed process cannot take back;
        # the file is synced at checkpoints, so a power cut costs the last commits and never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 16384")  # pages; `checkpoint` is called long before
        connection.execute("BEGIN IMMEDIATE")
        found = identify(connection, path)
        if found == 1:
            convert(connection)
        elif found == 0:
            run_all(connection, TABLES)
            connection.execute("INSERT INTO meta VALUES ('schema', ?), ('created', ?)", (str(VERSION), str(now)))
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def run_all(connection: sqlite3.Connection, script: str) -> None:
    """Statements one by one, inside whatever transaction is open; `executescript` would end it."""
    for statement in script.split(";"):
        connection.execute(statement)


def convert(connection: sqlite3.Connection) -> None:
    """From version 1, where every column was stored, within the transaction that opens the file."""
    for old in ("decisions", "outcomes"):
        connection.execute(f"ALTER TABLE {old} RENAME TO {old}_1")
    run_all(connection, TABLES)
    for new, old in (("decision_records", "decisions_1"), ("outcome_records", "outcomes_1")):
        names = ", ".join(STORED[new])
        connection.execute(f"INSERT INTO {new} ({names}) SELECT {names} FROM {old} ORDER BY rowid")
        connection.execute(f"DROP TABLE {old}")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(VERSION),))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def open_to_read(path: Path, timeout_s: float = 1.0) -> sqlite3.Connection:
    """A read-only connection. Raises: JournalError if there is no journal there."""
    if not path.is_file():
        raise JournalError(path, "no file", hint="The gateway writes it where [journal] path says.")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout_s)
        if identify(connection, path) == 0:
            connection.close()
            raise JournalError(path, "an empty database")
    except sqlite3.DatabaseError as error:
        raise JournalError(path, f"{type(error).__name__}: {error}") from error
    return connection


def identify(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version; 0: an empty database. Raises: JournalError if it is not ours to write."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise JournalError(path, f"another program's database with {tables} tables", hint="Name another path.")
    if version not in READABLE:
        raise JournalError(path, f"schema {version} where this version reads {VERSION}", hint="Name another path.")
    return int(version)


def write(connection: sqlite3.Connection, rows: Sequence[Row], sums: Mapping[TotalKey, float]) -> None:
    """Add rows and running sums in one transaction: all of it, or nothing and an sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        values: dict[str, list[Any]] = {table: [] for table in INSERT}
        for row in rows:
            values[row.table] += row.values
        for table in INSERT:
            insert(connection, table, values[table])
        connection.executemany(ADD_TOTAL, [(*key, amount) for key, amount in sums.items()])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def insert(connection: sqlite3.Connection, table: str, values: Sequence[Any]) -> None:
    """Add rows to a table, many to a statement. values: those of all rows, one row after the other."""
    width = len(STORED[table])
    for start in range(0, len(values), TOGETHER * width):
        part = values[start : start + TOGETHER * width]
        connection.execute(f"{INSERT[table]} {', '.join([TUPLE[table]] * (len(part) // width))}", part)


def checkpoint(path: Path) -> None:
    """Copy what the write-ahead log holds into the database and sync it, beside a running writer."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def writable(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[Row]:
    """The rows that SQLite can hold, tried one by one and taken back."""
    good = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for row in rows:
            with contextlib.suppress(*UNWRITABLE):
                connection.execute(f"{INSERT[row.table]} {TUPLE[row.table]}", row.values)
                good.append(row)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return good


def set_aside(path: Path, now: float) -> Path:
    """Rename a damaged journal and what belongs to it to PATH.corrupt-TIMESTAMP, so that a new one can begin."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for count in range(1, 1000):
        if not target.exists():
            break
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{count}")
    for suffix in ("-wal", "-shm", ""):  # the database last: were we stopped between, it is found and moved again
        if Path(f"{path}{suffix}").exists():
            os.replace(f"{path}{suffix}", f"{target}{suffix}")
    return target


def is_damaged(error: BaseException) -> bool:
    """SQLite says that the file's content is broken, as opposed to busy, full or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def read_sums(connection: sqlite3.Connection) -> Sums:
    """The running sums of every process that wrote here."""
    return Sums({(name, label): value for name, label, value in connection.execute("SELECT * FROM totals")})


class Found(NamedTuple):
    """The records of one decision, as JSON."""

    decision: str
    outcome: str | None
    feedback: list[str]


def find(connection: sqlite3.Connection, decision_id: str) -> Found | None:
    """Everything written about one decision; None if it is not there."""
    row = connection.execute("SELECT record FROM decisions WHERE id = ?", (decision_id,)).fetchone()
    return None if row is None else found(connection, decision_id, row[0])


def latest(connection: sqlite3.Connection, number: int, *, after: int = -1) -> list[tuple[int, Found]]:
    """(row number, records) of the last decisions written, oldest first; of those after a row number only."""
    rows = connection.execute(
        "SELECT rowid, id, record FROM decisions WHERE rowid > ? ORDER BY rowid DESC LIMIT ?", (after, number)
    ).fetchall()
    return [(number, found(connection, name, record)) for number, name, record in reversed(rows)]


def found(connection: sqlite3.Connection, decision_id: str, record: str) -> Found:
    """A decision with its outcome and feedback."""
    outcome = connection.execute("SELECT record FROM outcomes WHERE decision_id = ?", (decision_id,)).fetchone()
    reports = connection.execute("SELECT record FROM feedback WHERE decision_id = ? ORDER BY time", (decision_id,))
    return Found(record, outcome and outcome[0], [report for (report,) in reports])
