"""Outcomes from the gateway's own journal (SQLite): what was decided, what it yielded, what was said of it later."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.data.prices import pool_of
from polyroute.errors import OutcomesError
from polyroute.types import Array, Outcomes, Query

APPLICATION_ID, VERSIONS = 0x706F6C79, (1, 2)  # PRAGMA application_id, and user_version of the schemas read here
MEASURED = ("cost", "latency", "output_tokens")  # by the gateway; feedback does not replace them

DECISIONS = """
    SELECT d.id, d.time, d.policy, coalesce(d.session, ''), d.features, d.embedding, d.prompt_tokens,
           coalesce(json_extract(d.record, '$.prompt'), ''), CASE WHEN o.selected = d.selected THEN d.propensity END,
           o.selected, o.cost_usd, o.latency_s, o.completion_tokens
    FROM decisions d JOIN outcomes o ON o.decision_id = d.id
    WHERE d.dry_run = 0 AND o.state = 'ok' ORDER BY d.time, d.id"""
CANDIDATES = """
    SELECT DISTINCT json_extract(c.value, '$.id') AS id FROM decisions, json_each(decisions.record, '$.candidates') c
    UNION SELECT selected FROM outcomes ORDER BY id"""
FEEDBACK = """
    SELECT decision_id, m.key, m.value FROM feedback, json_each(feedback.record, '$.metrics') m
    WHERE m.type IN ('integer', 'real', 'true', 'false') ORDER BY time"""


def load_journal(path: Path | str, *, require: Sequence[str] = ("quality",), features: str | None = None) -> Outcomes:
    """Read a journal as a bandit log: one query per decision, one True per row of `observed`.

    Only answers that succeeded are read (state `ok`, no dry runs). The column is the candidate that answered;
    `propensity` is that of the decision, NaN where another candidate stepped in, since such a row cannot be reweighted.
    `values` holds cost (USD), latency (s), output_tokens, and whatever metrics feedback reported, quality among them;
    of several reports on one metric the latest stands. `labels` holds policy, time, features and group (the session).
    require: metrics a row must have; rows without them are left out. features: keep embeddings of this featuriser
    only; None: of the one that wrote the last row. `num_tokens` is the gateway's estimate before the call, which is
    what a router will see again.
    Raises: OutcomesError where the file is missing, is no journal, or holds no such row.
    """
    path = Path(path)
    rows, ids, reports = read(path)
    column = {candidate: j for j, candidate in enumerate(ids)}
    names = sorted({*MEASURED, *require, *(name for found in reports.values() for name in found)})
    values = {name: np.full((len(rows), len(ids)), np.nan) for name in names}
    observed = np.zeros((len(rows), len(ids)), dtype=bool)
    for i, row in enumerate(rows):
        j = column[row[9]]
        observed[i, j] = True
        for name, value in {**reports.get(row[0], {}), **measured(row)}.items():
            values[name][i, j] = sound(path, row[0], name, value)
    kept = np.ones(len(rows), dtype=bool)
    for name in require:
        kept &= np.isfinite(values[name]).any(axis=1)
    if not kept.any():
        raise OutcomesError(
            f"{path}: expected decisions with an outcome and {', '.join(require) or 'any metric'}, got {len(rows)} "
            f"decisions with an outcome and none with all of these. Report quality with POST /polyroute/v1/feedback."
        )
    if features is None:
        features = next((row[4] for row in reversed(rows) if row[5] is not None), "")
    queries = [Query(row[0], row[7], vector(path, row, features), num_tokens=row[6]) for row in rows]
    labels = {name: np.array([row[k] for row in rows]) for name, k in
              (("policy", 2), ("time", 1), ("features", 4), ("group", 3))}  # fmt: skip
    propensity = np.array([math.nan if row[8] is None else row[8] for row in rows], dtype=float)
    return Outcomes(queries, pool_of(ids, path), values, observed, labels, propensity).take(kept)


def read(path: Path) -> tuple[list[tuple[Any, ...]], list[str], dict[str, dict[str, float]]]:
    """The decisions with an outcome, every candidate id, and decision id -> metric -> latest report."""
    if not path.is_file():
        raise OutcomesError(f"{path}: expected a journal, got no such file.")
    try:
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = tuple(file.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version"))
            if found[0] != APPLICATION_ID or found[1] not in VERSIONS:
                raise OutcomesError(
                    f"{path}: expected a polyroute journal of version {VERSIONS[-1]} or before, got "
                    + (f"version {found[1]}." if found[0] == APPLICATION_ID else "another program's database.")
                )
            rows = file.execute(DECISIONS).fetchall()
            ids = [row[0] for row in file.execute(CANDIDATES)]
            reports: dict[str, dict[str, float]] = {}
            for decision, metric, value in file.execute(FEEDBACK):
                reports.setdefault(decision, {})[metric] = float(value)
        finally:
            file.close()
    except sqlite3.Error as problem:
        raise OutcomesError(f"{path}: expected a polyroute journal, got: {problem}.") from problem
    return rows, ids, reports


def measured(row: tuple[Any, ...]) -> dict[str, float]:
    """Metric -> value as the gateway measured it, where it did."""
    return {name: float(value) for name, value in zip(MEASURED, row[10:13], strict=True) if value is not None}


def sound(path: Path, decision: str, name: str, value: float) -> float:
    """The value, or an error where it cannot be this metric's."""
    high = 1.0 if name == "quality" else math.inf
    if name in (*MEASURED, "quality") and not 0 <= value <= high:
        raise OutcomesError(f"{path}: decision {decision!r}: expected {name} in 0..{high:g}, got {value:g}.")
    return value


def vector(path: Path, row: tuple[Any, ...], features: str) -> Array | None:
    """[d] float32 embedding of a decision's query; None where it has none of this featuriser."""
    if row[5] is None or row[4] != features:
        return None
    if len(row[5]) % 2:
        raise OutcomesError(f"{path}: decision {row[0]!r}: expected an embedding of float16, got {len(row[5])} bytes.")
    return np.frombuffer(row[5], dtype="<f2").astype(np.float32)
