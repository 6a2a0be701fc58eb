"""The journal on disk: one SQLite file that other programs may read while the gateway writes it.

Schema, version 1 (`PRAGMA user_version` = 1, `PRAGMA application_id` = APPLICATION_ID). All times are seconds since
the epoch, costs USD, latencies seconds. `record` is always the whole record as JSON (records.py), without `embedding`.

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

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from polyroute.errors import JournalError
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord
from polyroute.gateway.totals import Sums, TotalKey

VERSION = 1
APPLICATION_ID = 0x706F6C79  # "poly"

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    name TEXT NOT NULL, label TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, label)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    id TEXT PRIMARY KEY, time REAL NOT NULL, request_id TEXT NOT NULL, endpoint TEXT NOT NULL, requested TEXT NOT NULL,
    policy TEXT NOT NULL, selected TEXT NOT NULL, propensity REAL NOT NULL, router TEXT NOT NULL,
    artefact TEXT NOT NULL, features TEXT NOT NULL, prompt_tokens INTEGER, session TEXT, tenant TEXT,
    dry_run INTEGER NOT NULL, embedding BLOB, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (
    decision_id TEXT PRIMARY KEY, time REAL NOT NULL, status INTEGER NOT NULL, state TEXT NOT NULL,
    selected TEXT NOT NULL, attempts INTEGER NOT NULL, latency_s REAL, first_byte_s REAL, prompt_tokens INTEGER,
    cached_tokens INTEGER, completion_tokens INTEGER, cost_usd REAL, dearest_usd REAL, error TEXT,
    record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
    decision_id TEXT NOT NULL, time REAL NOT NULL, source TEXT NOT NULL, quality REAL, record TEXT NOT NULL,
    UNIQUE (decision_id, time, record));
CREATE INDEX IF NOT EXISTS decisions_time ON decisions (time);
CREATE INDEX IF NOT EXISTS outcomes_time ON outcomes (time);
CREATE INDEX IF NOT EXISTS feedback_time ON feedback (time);
"""

# The same row written twice is one row: a batch may be retried after an error that came too late to matter.
INSERT = {
    "decisions": f"INSERT OR REPLACE INTO decisions VALUES ({', '.join('?' * 17)})",
    "outcomes": f"INSERT OR REPLACE INTO outcomes VALUES ({', '.join('?' * 15)})",
    "feedback": f"INSERT OR IGNORE INTO feedback VALUES ({', '.join('?' * 5)})",
}
ADD_TOTAL = """INSERT INTO totals VALUES (?, ?, ?)
    ON CONFLICT (name, label) DO UPDATE SET value = value + excluded.value"""
