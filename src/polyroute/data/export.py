"""Write `Outcomes` as the long Parquet table that `load_outcomes` reads, and any table whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.errors import MissingExtraError
from polyroute.types import Array, Outcomes

COLUMNS = {"quality": "score", "cost": "cost_usd", "output_tokens": "output_tokens", "latency": "latency_s"}
LABELS = {"dataset": "dataset", "split": "split", "group": "group_id"}


def write_outcomes(outcomes: Outcomes, path: Path | str) -> None:
    """One row per observed (query, model): the metrics of COLUMNS, the labels of LABELS, text and prompt tokens."""
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    i, j = np.nonzero(outcomes.observed)
    counts = [query.num_tokens for query in outcomes.queries]
    labels = {label: column for label, column in LABELS.items() if label in outcomes.labels}
    table = {
        "query_id": coded([query.id for query in outcomes.queries], i),
        **{column: coded(outcomes.labels[label].tolist(), i) for label, column in labels.items()},
        "query": coded([query.text for query in outcomes.queries], i),
        "model": coded([candidate.id for candidate in outcomes.pool], j),
        "input_tokens": pa.array([counts[q] for q in i.tolist()], pa.int32()),
        **{column: outcomes.values[name][i, j] for name, column in COLUMNS.items() if name in outcomes.values},
    }
    write_whole(pa.table(table), Path(path))


def write_whole(table: Any, path: Path) -> None:
    """Write a pyarrow table; the file appears when it is complete, and one that was there stays until then."""
    import pyarrow.parquet as pq

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, unfinished, compression="zstd")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def coded(values: list[str], rows: Array) -> object:
    """A dictionary-encoded pyarrow column: `values` at `rows`."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(values, pa.string()))
