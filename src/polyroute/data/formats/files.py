"""Rows of a CSV, JSON, JSON Lines or Parquet file as dicts, with errors that name file and line. Never a pickle."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyroute.errors import MissingExtraError, OutcomesError, nearest

Row = Mapping[str, Any]
PICKLES = (".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth")
READABLE = (".csv", ".jsonl", ".json", ".parquet")


def files_of(source: Path, *suffixes: str) -> list[Path]:
    """The file itself, or all files of a folder and its subfolders with one of the suffixes, in order of name.

    Raises: OutcomesError where there is none, and for a pickle, which is never opened.
    """
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix in suffixes and path.is_file())
        if not found:
            raise OutcomesError(f"{source}: expected files ending in {' or '.join(suffixes)} in this folder, got none.")
        return found
    if source.suffix in PICKLES:
        raise OutcomesError(
            f"{source}: expected {' or '.join(suffixes)}, got a pickle, which may run any code when it is opened "
            f'and is never opened here. Where you trust its source, convert it once: python -c "import pandas; '
            f"pandas.read_pickle('{source.name}').to_parquet('{source.stem}.parquet')\""
        )
    if not source.is_file():
        raise OutcomesError(f"{source}: expected a file or a folder, got none of this name.")
    if source.suffix not in suffixes:
        raise OutcomesError(f"{source}: expected a file ending in {' or '.join(suffixes)}, got {source.name!r}.")
    return [source]


def rows_of_file(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Each row as a dict. columns: those to read of a Parquet file; None: all.

    Raises: OutcomesError naming the line (from 1) that cannot be read, or bytes that are not UTF-8.
    """
    readers = {".csv": csv_rows, ".jsonl": json_lines, ".json": json_rows}
    try:
        if path.suffix == ".parquet":
            yield from parquet_rows(path, columns)
        else:
            yield from readers[path.suffix](path)
    except UnicodeDecodeError as problem:
        byte = problem.object[problem.start]
        raise OutcomesError(f"{path}: expected UTF-8 text, got byte 0x{byte:02x}. Write the file as UTF-8.") from None
    except OSError as problem:
        raise OutcomesError(f"{path}: expected a readable file, got: {problem.strerror or problem}.") from problem


def csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**27)  # recorded answers are long
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row or None in row.values():
                    expected = f"expected {len(reader.fieldnames or ())} columns, got another number"
                    raise OutcomesError(f"{path}, line {reader.line_num}: {expected}.")
                yield row
        except csv.Error as problem:
            raise OutcomesError(f"{path}, line {reader.line_num}: expected CSV, got: {problem}.") from problem


def json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield an_object(path, number, line)


def json_rows(path: Path) -> Iterator[Row]:
    """A list of objects; or one object, as a single row."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        if isinstance(problem, UnicodeDecodeError):
            raise
        raise OutcomesError(f"{path}: expected JSON, got: {problem}.") from problem
    for row in content if isinstance(content, list) else [content]:
        if not isinstance(row, dict):
            raise OutcomesError(f"{path}: expected JSON objects, got {type(row).__name__}.")
        yield row


def an_object(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as problem:
        raise OutcomesError(f"{path}, line {number}: expected a JSON object, got: {problem}.") from problem
    if not isinstance(row, dict):
        raise OutcomesError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
    return row


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    try:
        with pq.ParquetFile(path) as file:
            names = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(1024, columns=names):
                yield from batch.to_pylist()
    except pa.ArrowException as problem:
        first = str(problem).strip().split("\n")[0]
        raise OutcomesError(f"{path}: expected a readable Parquet file, got: {first}") from problem


def columns_of(path: Path) -> list[str]:
    """The names of the first row's values; none for an empty file."""
    if path.suffix == ".parquet":
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtraError("pyarrow", "data") from None
        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as problem:
            first = str(problem).strip().split("\n")[0]
            raise OutcomesError(f"{path}: expected a readable Parquet file, got: {first}") from problem
    return list(next(iter(rows_of_file(path)), {}))


def need(path: Path, row: Row, names: Sequence[str]) -> None:
    """Raise where a row lacks a field. Raises: OutcomesError with the nearest name."""
    for name in names:
        if name not in row:
            near = nearest(name, row)
            raise OutcomesError(
                f"{path}: expected a field {name!r}, got {', '.join(map(repr, list(row)[:12]))}."
                + (f" Did you mean {near!r}?" if near else "")
            )


def number(path: Path, name: str, value: Any) -> float:
    """A number, also of 'True' and 'False'. Raises: OutcomesError naming the field."""
    said = value.strip().lower() if isinstance(value, str) else value
    try:
        return float(said == "true") if said in ("true", "false") else float(said)
    except (TypeError, ValueError):
        raise OutcomesError(f"{path}: field {name!r}: expected a number, got {value!r:.60}.") from None
