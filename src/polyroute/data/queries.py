"""Queries without outcomes, from any Parquet table with `query_id` and `query`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyroute.data.columns import read_columns
from polyroute.data.outcomes import checked, rows_of, same_throughout
from polyroute.types import Query

TOKENS = ("input_tokens", "n_tokens")  # columns that may hold prompt tokens, the first found counts


def load_queries(path: Path | str) -> list[Query]:
    """Each query once, in order of first appearance; rows that repeat a query_id must agree on its text.

    The text is the column query, else prompt. `num_tokens` is the median over a query's rows where a column states it.
    Raises: OutcomesError naming file, column and row.
    """
    columns = read_columns(path, ("query_id",), ("query", "prompt", *TOKENS))
    if not len(columns):
        raise columns.error("expected queries, got an empty table")
    text = "query" if "query" in columns else "prompt"
    if text not in columns:
        raise columns.error("expected a column 'query' or 'prompt' with the text to route on, got neither", "Add one.")
    ids, i, first = rows_of(columns.text("query_id", nulls=False))
    texts = same_throughout(columns, text, i, first, ids)
    tokens: list[int | None] = [None] * len(ids)
    stated = next((name for name in TOKENS if name in columns), None)
    if stated is not None:
        counts = checked(columns, stated, columns.number(stated))
        order = np.argsort(i, kind="stable")
        for q, rows in enumerate(np.split(counts[order], np.cumsum(np.bincount(i))[:-1])):
            known = rows[np.isfinite(rows)]
            tokens[q] = round(float(np.median(known))) if len(known) else None
    return [Query(ids[q], texts[q], num_tokens=tokens[q]) for q in range(len(ids))]
