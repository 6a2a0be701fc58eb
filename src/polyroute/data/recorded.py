"""What was recorded beside the outcomes: embeddings (`embeddings.npy`, `queries.parquet`) and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyroute.data.columns import read_columns
from polyroute.errors import OutcomesError
from polyroute.types import Array

RECORDED_MINILM = "recorded-minilm"  # the name saved with routers fitted on these vectors


def recorded_embeddings(query_ids: Sequence[str], table: Path | str) -> Array:
    """[n, d] float32, the recorded embedding of each query; a row of NaN where a query has none (no text).

    Both files are looked for in the folder of `table` and in the one above.
    Raises: OutcomesError where a file is missing or damaged or a query is not listed at all.
    """
    folders = (Path(table).parent, Path(table).parent.parent)
    folder = next((f for f in folders if (f / "embeddings.npy").is_file() and (f / "queries.parquet").is_file()), None)
    if folder is None:
        raise OutcomesError(
            f"{table}: expected embeddings.npy and queries.parquet beside it or one folder above, got neither. "
            f"Use a featuriser that reads the text instead (--features static-1)."
        )
    columns = read_columns(folder / "queries.parquet", ("query_id", "emb_row"))
    listed = columns.text("query_id", nulls=False)
    place = {listed.values[code]: row for row, code in enumerate(listed.codes)}
    if missing := [query_id for query_id in query_ids if query_id not in place]:
        raise columns.error(
            f"column 'query_id': expected all {len(query_ids)} queries of {table}, got none for {len(missing)} "
            f"({', '.join(map(repr, missing[:3]))})",
            "Use --features static-1 for queries without a recorded embedding.",
        )
    row = columns.number("emb_row")[[place[query_id] for query_id in query_ids]]
    return gather(folder / "embeddings.npy", row)


def gather(path: Path, row: Array) -> Array:
    """Rows of a stored array [r, d] as float32 [n, d]; NaN where `row` is NaN."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as problem:
        raise OutcomesError(f"{path}: expected a NumPy array file, got: {problem}.") from problem
    known = np.isfinite(row)
    if stored.ndim != 2 or (known.any() and not 0 <= row[known].min() <= row[known].max() < len(stored)):
        raise OutcomesError(f"{path}: expected [rows, d] with rows up to {np.nanmax(row):.0f}, got {stored.shape}.")
    found = np.full((len(row), stored.shape[1]), np.nan, dtype=np.float32)
    found[known] = stored[row[known].astype(np.int64)]
    return found


def recorded_answers(*paths: Path | str) -> dict[tuple[str, str], str]:
    """(query id, model) -> text of the answer, from files such as outcomes/*_responses.parquet; nulls are left out.

    Raises: OutcomesError where a file is missing, damaged or without the columns query_id, model and response.
    """
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        columns = read_columns(path, ("query_id", "model", "response"))
        query, model, answer = (columns.text(name) for name in ("query_id", "model", "response"))
        for q, m, a in zip(query.codes, model.codes, answer.codes, strict=True):
            if min(q, m, a) >= 0:
                found[query.values[q], model.values[m]] = answer.values[a]
    return found
