"""GQR-Bench (the package gqr): texts with the domain that should answer them, or `ood` for none of the domains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyroute.data.formats.files import files_of, need, rows_of_file
from polyroute.data.formats.published import SPLITS
from polyroute.errors import OutcomesError

DOMAINS = {"0": "law", "1": "finance", "2": "healthcare", "3": "ood"}


def gqr(source: Path) -> dict[str, list[Any]]:
    """Column -> values: query_id, query, domain, and split and dataset where the files have them.

    Files hold text and label or domain, as the package's loaders return them; a file's name may name its split. A
    domain may be written as its number. Rows without a text are left out.
    Raises: OutcomesError for a label that is none of GQR-Bench's.
    """
    rows: list[tuple[str, str, str, str, str]] = []
    for path in files_of(source, ".csv", ".jsonl", ".json", ".parquet"):
        split = SPLITS.get(path.stem.lower().rpartition("_")[2], "")
        for line, row in enumerate(rows_of_file(path), 1):
            need(path, row, ["text"])
            told = row.get("domain") or row.get("label")
            label = str(row.get("label") if told is None else told).removesuffix(".0")
            domain = DOMAINS.get(label, label)
            if domain not in DOMAINS.values():
                known = ", ".join(DOMAINS.values())
                raise OutcomesError(f"{path}, row {line}: expected a domain of {known} or its number, got {label!r}.")
            text, dataset = str(row["text"] or ""), str(row.get("dataset") or "").strip()
            if text.strip():
                rows.append((f"{path.stem}-{line}", text, domain, split, dataset))
    names = ("query_id", "query", "domain", "split", "dataset")
    found = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    if not found:
        raise OutcomesError(f"{source}: expected labelled texts, got none.")
    return {name: column for name, column in found.items() if any(column)}
