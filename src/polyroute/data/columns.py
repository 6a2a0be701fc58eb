"""Read named columns of a Parquet file into plain arrays, with errors that name file, column and row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute.errors import MissingExtraError, OutcomesError, nearest
from polyroute.types import Array

READ_WITH = {  # suffix -> what reads such a file as a table
    ".csv": "read_csv(...)",
    ".tsv": "read_table(...)",
    ".json": "read_json(...)",
    ".jsonl": "read_json(..., lines=True)",
}


class Coded(NamedTuple):
    """A text column with each distinct value once."""

    codes: Array  # [rows] int64 into `values`; -1 where null
    values: list[str]

    def __getitem__(self, rows: Any) -> Any:
        """The texts of some rows; null becomes the empty text. rows: [r] int."""
        return [self.values[code] if code >= 0 else "" for code in self.codes[rows]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Some columns of one Parquet file. Rows are counted from 0 in every message."""

    path: Path
    table: Any  # pyarrow.Table

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def text(self, name: str, *, nulls: bool = True) -> Coded:
        """A column of texts (or of whole numbers, read as texts). nulls: whether missing and empty values are fine."""
        import pyarrow as pa

        column = self.table[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_integer(kind) or pa.types.is_string_view(kind):  # views can not be encoded as a dictionary
            column, kind = column.cast(pa.large_string()), pa.large_string()
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise self.error(f"column {name!r}: expected text, got {column.type}", "Write the column as strings.")
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        encoded = encoded.unify_dictionaries().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):  # no rows at all
            return Coded(np.empty(0, np.int64), [])
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        if not nulls and (codes < 0).any():
            row = int(np.flatnonzero(codes < 0)[0])
            raise self.error(f"column {name!r}, row {row}: expected a text, got null", "Fill it or leave the row out.")
        found = distinct(codes, self._decode(name, encoded.dictionary, codes))
        if not nulls and "" in found.values and (empty := found.codes == found.values.index("")).any():
            row = int(np.flatnonzero(empty)[0])
            raise self.error(f"column {name!r}, row {row}: expected a text, got ''", "Fill it or leave the row out.")
        return found

    def _decode(self, name: str, dictionary: Any, codes: Array) -> list[str]:
        """The dictionary's texts, or an error that names the first row with bytes that are not UTF-8."""
        try:
            return [value or "" for value in dictionary.to_pylist()]
        except UnicodeDecodeError:
            for code in range(len(dictionary)):
                try:
                    dictionary[code].as_py()
                except UnicodeDecodeError as problem:
                    row = int(np.flatnonzero(codes == code)[0]) if (codes == code).any() else 0
                    byte, at = problem.object[problem.start], problem.start
                    raise self.error(
                        f"column {name!r}, row {row}: expected UTF-8 text, got byte 0x{byte:02x} at position {at}",
                        "Write the text as UTF-8.",
                    ) from None
            raise

    def number(self, name: str) -> Array:
        """[rows] float64; NaN where null."""
        import pyarrow as pa

        column = self.table[name]
        kind = column.type
        if pa.types.is_null(kind):
            return np.full(len(self), np.nan)
        numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
        if not any(fits(kind) for fits in numeric):
            raise self.error(f"column {name!r}: expected numbers, got {kind}", "Write the column as float64.")
        values = column.cast(pa.float32() if pa.types.is_float16(kind) else pa.float64())
        return values.to_numpy().astype(np.float64)

    def error(self, problem: str, advice: str = "") -> OutcomesError:
        return OutcomesError(f"{self.path}: {problem}." + (f" {advice}" if advice else ""))


def distinct(codes: Array, values: Sequence[str]) -> Coded:
    """The same column with every text stored once and in order; Parquet allows repeats in its dictionary."""
    place: dict[str, int] = {}
    moved = np.array([place.setdefault(value, len(place)) for value in values], dtype=np.int64)
    return Coded(np.where(codes < 0, -1, moved[codes]) if len(moved) else codes, list(place))


def read_columns(path: Path | str, required: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Open a Parquet file and read the columns asked for, those of `optional` only where they exist.

    Raises: OutcomesError where the file is missing, is not Parquet, is damaged, or lacks a required column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    path = Path(path)
    if not path.is_file():
        raise OutcomesError(f"{path}: expected a Parquet file, got {'a folder' if path.is_dir() else 'no such file'}.")
    try:
        names = pq.read_schema(path).names
        for column in required:
            if column not in names:
                near = nearest(column, [name for name in names if name not in {*required, *optional}])
                raise OutcomesError(
                    f"{path}: expected a column {column!r}, got {', '.join(map(repr, names[:20])) or 'no columns'}."
                    + (f" Did you mean {near!r}? Rename it to {column!r}." if near else " Add it.")
                )
        repeated = sorted({name for name in names if names.count(name) > 1} & {*required, *optional})
        if repeated:
            count = names.count(repeated[0])
            raise OutcomesError(f"{path}: expected one column {repeated[0]!r}, got {count}. Drop the others.")
        wanted = [name for name in names if name in {*required, *optional}]
        return Columns(path, pq.read_table(path, columns=wanted))
    except (pa.ArrowException, OSError) as problem:
        first = str(problem).strip().split("\n")[0]
        hint = READ_WITH.get(path.suffix.lower())
        told = f" Write it as Parquet: pandas.{hint}.to_parquet('{path.stem}.parquet')." if hint else ""
        raise OutcomesError(f"{path}: expected a readable Parquet file, got: {first.rstrip('.')}.{told}") from problem
