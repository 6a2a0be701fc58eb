"""Write `Outcomes` as the long Parquet table that `load_outcomes` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyroute.errors import MissingExtraError
from polyroute.types import Array, Outcomes

COLUMNS = {"quality": "score", "cost": "cost_usd", "output_tokens": "output_tokens", "latency": "latency_s"}
LABELS = {"dataset": "dataset", "split": "split", "group": "group_id"}


def write_outcomes(outcomes: Outcomes, path: Path | str) -> None:
    """One row per observed (query, model): the metrics of COLUMNS, the labels of LABELS, text and prompt tokens."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
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
    pq.write_table(pa.table(table), path, compression="zstd")


def coded(values: list[str], rows: Array) -> object:
    """A dictionary-encoded pyarrow column: `values` at `rows`."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(values, pa.string()))
