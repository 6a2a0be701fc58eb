"""What a person does with a journal file: see what is in it, take it out as a table, make it smaller."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polyroute.errors import JournalError, MissingExtraError
from polyroute.gateway.journal_file import identify, open_to_read, read_sums

STORES_OF = {
    1: ("decisions", "outcomes", "feedback"),
    2: ("decision_records", "outcome_records", "feedback"),
}  # schema -> the tables that hold decisions, outcomes and feedback
CHUNK = 2_000  # rows a transaction, so that a gateway that writes the same file hardly waits


class Contents(NamedTuple):
    """What a file holds. totals: running sums, see totals.Sums.view; times: seconds since the epoch."""

    totals: dict[str, Any]
    created: float
    decisions: int
    outcomes: int
    feedback: int
    first: float | None
    last: float | None
    bytes: int


def contents(path: Path) -> Contents:
    """Counts and sums of a journal. Raises: JournalError if there is none."""
    with contextlib.closing(open_to_read(path)) as file:
        (created,) = file.execute("SELECT value FROM meta WHERE key = 'created'").fetchone()
        decisions, outcomes, feedback = (count(file, table) for table in ("decisions", "outcomes", "feedback"))
        first, last = file.execute("SELECT min(time), max(time) FROM decisions").fetchone()
        sums = read_sums(file)
    size = sum(os.stat(f"{path}{end}").st_size for end in ("", "-wal") if Path(f"{path}{end}").exists())
    return Contents(sums.view(), float(created), decisions, outcomes, feedback, first, last, size)


class Pruned(NamedTuple):
    """Rows that were removed, and bytes given back to the disk."""

    decisions: int
    outcomes: int
    feedback: int
    bytes: int


def prune(path: Path, before: float, *, dry_run: bool = False) -> Pruned:
    """Remove decisions made before a time (seconds since the epoch), with their outcomes and feedback.

    Works beside a running gateway. The running sums stay, so totals still tell the whole life of the file.
    Raises: JournalError if there is no journal, or another program keeps it locked.
    """
    with contextlib.closing(open_to_read(path)) as file:
        old = "decision_id IN (SELECT id FROM decisions WHERE time < ?1)"
        alone = "time < ?1 AND decision_id NOT IN (SELECT id FROM decisions)"
        decisions = count(file, "decisions WHERE time < ?1", before)
        outcomes, feedback = [count(file, f"{t} WHERE {old} OR {alone}", before) for t in ("outcomes", "feedback")]
    if dry_run:
        return Pruned(decisions, outcomes, feedback, 0)
    size = path.stat().st_size
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=10.0, isolation_level=None)) as file:
            tables = STORES_OF[identify(file, path)]
            while remove(file, tables, before):
                pass
            for table in tables[1:]:
                file.execute(f"DELETE FROM {table} WHERE {alone}", (before,))
            file.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            while file.execute("PRAGMA freelist_count").fetchone()[0]:
                file.execute(f"PRAGMA incremental_vacuum({CHUNK})").fetchall()
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        raise JournalError(path, str(error), hint="Try again once the other program is done.") from error
    return Pruned(decisions, outcomes, feedback, size - path.stat().st_size)


def count(file: sqlite3.Connection, query: str, *values: float) -> int:
    """Number of rows of a table, perhaps WHERE something."""
    return int(file.execute(f"SELECT count(*) FROM {query}", values).fetchone()[0])


def remove(file: sqlite3.Connection, tables: Sequence[str], before: float) -> int:
    """Remove some old decisions and all about them, in one transaction; how many."""
    file.execute("BEGIN IMMEDIATE")
    ids = file.execute(f"SELECT id FROM {tables[0]} WHERE time < ? LIMIT ?", (before, CHUNK)).fetchall()
    for table, key in zip(tables, ("id", "decision_id", "decision_id"), strict=True):
        file.executemany(f"DELETE FROM {table} WHERE {key} = ?", ids)
    file.execute("COMMIT")
    return len(ids)


EXPORTED = """
    SELECT d.id, d.time, d.request_id, d.endpoint, d.requested, d.policy, d.selected, d.propensity, d.router,
        d.artefact, d.features, d.session, d.tenant, d.dry_run, d.prompt_tokens,
        json_extract(d.record, '$.because'), json_extract(d.record, '$.candidates'),
        json_extract(d.record, '$.weights'), json_extract(d.record, '$.prompt'), d.embedding,
        o.status, o.state, o.selected, o.attempts, o.latency_s, o.first_byte_s, o.prompt_tokens, o.cached_tokens,
        o.completion_tokens, o.cost_usd, o.dearest_usd, o.error, f.quality, coalesce(f.reports, 0)
    FROM decisions d LEFT JOIN outcomes o ON o.decision_id = d.id
    LEFT JOIN (SELECT decision_id, avg(quality) AS quality, count(*) AS reports FROM feedback GROUP BY decision_id) f
        ON f.decision_id = d.id
    ORDER BY d.rowid"""
COLUMNS = {
    "id": "string", "time": "float64", "request_id": "string", "endpoint": "string", "requested": "string",
    "policy": "string", "selected": "string", "propensity": "float64", "router": "string", "artefact": "string",
    "features": "string", "session": "string", "tenant": "string", "dry_run": "bool",
    "estimated_prompt_tokens": "int64", "because": "string", "candidates": "string", "weights": "string",
    "prompt": "string", "embedding": "list", "status": "int64", "state": "string", "served_by": "string",
    "attempts": "int64", "latency_s": "float64", "first_byte_s": "float64", "prompt_tokens": "int64",
    "cached_tokens": "int64", "completion_tokens": "int64", "cost_usd": "float64", "dearest_usd": "float64",
    "error": "string", "quality": "float64", "reports": "int64",
}  # fmt: skip


def export(path: Path, out: Path) -> int:
    """Write one row a decision to a Parquet file, with its outcome and the mean of the quality reported. Rows written.

    `candidates` and `weights` are JSON; `embedding` is a list of float32. The file appears whole or not at all.
    Raises: JournalError, MissingExtraError (pyarrow).
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "data") from None
    kinds = {"list": pyarrow.list_(pyarrow.float32()), "bool": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(kind) or getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    unfinished, count = out.with_name(f".{out.name}.unfinished"), 0
    try:
        with contextlib.closing(open_to_read(path)) as file, parquet.ParquetWriter(unfinished, schema) as writer:
            for rows in in_chunks(file.execute(EXPORTED)):
                columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
                columns["embedding"] = tuple(vector(blob) for blob in columns["embedding"])
                columns["dry_run"] = tuple(map(bool, columns["dry_run"]))
                writer.write_table(pyarrow.table(columns, schema=schema))
                count += len(rows)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def in_chunks(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(CHUNK):
        yield rows


def vector(blob: bytes | None) -> list[float] | None:
    """An embedding as it was stored."""
    import numpy as np

    return None if blob is None else np.frombuffer(blob, dtype="<f2").astype(np.float32).tolist()
