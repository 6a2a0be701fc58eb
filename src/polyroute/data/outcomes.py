"""Public outcome tables in Parquet, one row per (query, model), as `Outcomes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polyroute.data.checks import CHARACTERS_PER_TOKEN, refuse_odd_costs, refuse_repeated_queries, same_text
from polyroute.data.columns import Coded, Columns, read_columns
from polyroute.data.prices import pool_of
from polyroute.errors import ShapeError
from polyroute.types import Array, Outcomes, Query

REQUIRED = ("query_id", "model", "score", "cost_usd")
OPTIONAL = ("dataset", "split", "group_id", "source_id", "input_tokens", "output_tokens", "latency_ms", "latency_s")
LABELS = {"dataset": "dataset", "split": "split", "group_id": "group", "source_id": "topic"}  # column -> label
SLACK = 1e-6  # a score stored in single precision may pass 0 or 1 by this much


def load_outcomes(path: Path | str, *, allow_shared_groups: bool = False, any_cost: bool = False) -> Outcomes:
    """Read a long table: one row per (query, model) with at least query_id, model, score, cost_usd and query or prompt.

    `values` holds quality (score, 0..1), cost (USD) and, where the table has them, output_tokens and latency (s);
    `observed` marks the rows there are; `labels` holds dataset, split, group and topic (from source_id, such as an
    exam's subject) where the table has them. A query's `num_tokens` is the median of its input_tokens over the models.
    Prices come from a models.json beside or above.
    Without a column group_id, queries of one text share a group if there are any.
    allow_shared_groups: take a table with copies or near-duplicate groups in several splits; a leak, refused otherwise.
    any_cost: take costs that can hardly be USD, refused otherwise; see `data/checks.py`.
    Raises: OutcomesError naming the file, and the column and row (counted from 0) where something does not fit.
    """
    columns = read_columns(path, REQUIRED, (*OPTIONAL, "query", "prompt"))
    if not len(columns):
        raise columns.error("expected rows, got an empty table", "Write one row per query and model.")
    text_column = "query" if "query" in columns else "prompt"
    if text_column not in columns:
        raise columns.error("expected a column 'query' or 'prompt' with the text to route on, got neither", "Add one.")
    models = columns.text("model", nulls=False)
    ids, i, first = rows_of(columns.text("query_id", nulls=False))
    j, names = models.codes, models.values
    refuse_duplicates(columns, i * len(names) + j, ids, names)
    labels = {
        label: np.asarray(same_throughout(columns, column, i, first, ids))
        for column, label in LABELS.items()
        if column in columns
    }
    if not allow_shared_groups and {"group", "split"} <= labels.keys():
        refuse_shared_groups(columns, ids, labels["group"], labels["split"])
    texts = same_throughout(columns, text_column, i, first, ids)
    text = same_text(texts)
    if not allow_shared_groups and "split" in labels:
        refuse_repeated_queries(columns, ids, text, labels["split"])
    if "group" not in labels and len(np.unique(text[text >= 0])) < (text >= 0).sum():
        labels["group"] = np.array([f"text-{t}" if t >= 0 else "" for t in text])
    observed = np.zeros((len(ids), len(names)), dtype=bool)
    observed[i, j] = True
    values = {name: spread(column, observed.shape, i, j) for name, column in metrics(columns).items()}
    tokens = prompt_tokens(columns, observed.shape, i, j)
    queries = [Query(ids[q], texts[q], num_tokens=tokens[q]) for q in range(len(ids))]
    pool = pool_of(names, columns.path)
    if not any_cost:
        read = [len(q.text) / CHARACTERS_PER_TOKEN if q.num_tokens is None else q.num_tokens for q in queries]
        wrote = values.get("output_tokens", np.full(observed.shape, np.nan))
        refuse_odd_costs(columns, values["cost"], np.array(read, float)[:, None], wrote, pool)
    return Outcomes(queries, pool, values, observed, labels)


def rows_of(column: Coded) -> tuple[list[str], Array, Array]:
    """Query ids in order of first appearance, each row's place among them [rows], and each id's first row [n]."""
    present, first, inverse = np.unique(column.codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return [column.values[code] for code in present[order]], place[inverse], first[order]


def refuse_duplicates(columns: Columns, keys: Array, ids: list[str], names: list[str]) -> None:
    """Raise where two rows answer for the same query and model. keys: [rows], one number per (query, model)."""
    _, first, count = np.unique(keys, return_index=True, return_counts=True)
    if (count > 1).any():
        one = int(first[count > 1].min())
        two = int(np.flatnonzero(keys == keys[one])[1])
        query, model = ids[int(keys[one]) // len(names)], names[int(keys[one]) % len(names)]
        raise columns.error(
            f"expected one row per query and model, got rows {one} and {two} for query_id {query!r}, model {model!r}",
            "Keep one, or average them.",
        )


def same_throughout(columns: Columns, name: str, i: Array, first: Array, ids: list[str]) -> list[str]:
    """[n] one text per query. Raises where rows of one query disagree, e.g. a query in two splits."""
    column = columns.text(name)
    differs = column.codes != column.codes[first][i]
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        here, there = column[[row, int(first[i[row]])]]
        raise columns.error(
            f"column {name!r}, row {row}: expected {there[:60]!r} as in row {first[i[row]]} of the same "
            f"query_id {ids[i[row]]!r}, got {here[:60]!r}",
            "One query has one value; give different queries different ids.",
        )
    texts: list[str] = column[first]
    return texts


def refuse_shared_groups(columns: Columns, ids: list[str], groups: Array, splits: Array) -> None:
    """Raise where near-duplicates stand on both sides of a split: a router would be tested on what it learned."""
    pairs = np.unique(np.stack([groups, splits]), axis=1)
    names, count = np.unique(pairs[0], return_counts=True)
    leaks = [name for name in names[count > 1] if name]
    if leaks:
        shown = "; ".join(
            f"{str(name)!r}: " + ", ".join(f"{ids[q]!r} in {splits[q]}" for q in np.flatnonzero(groups == name)[:4])
            for name in leaks[:5]
        )
        raise columns.error(
            f"column 'group_id': expected each group in one split, got {len(leaks)} in several ({shown})",
            "Move each group to one split, or accept the leak with allow_shared_groups (--allow-shared-groups).",
        )


def metrics(columns: Columns) -> dict[str, Array]:
    """Metric -> [rows] in the metric's unit, checked: quality in 0..1, everything else at least 0."""
    quality = checked(columns, "score", columns.number("score"), high=1.0, complete=True)
    values = {"quality": quality, "cost": checked(columns, "cost_usd", columns.number("cost_usd"), complete=True)}
    for name, metric, unit in (("output_tokens", "output_tokens", 1.0), ("latency_ms", "latency", 1e-3),
                               ("latency_s", "latency", 1.0)):  # fmt: skip
        if name in columns and np.isfinite(found := checked(columns, name, columns.number(name))).any():
            values[metric] = found * unit
    return values


def checked(columns: Columns, name: str, values: Array, *, high: float = np.inf, complete: bool = False) -> Array:
    """The column clipped to [0, high]. complete: whether null and NaN are errors."""
    wrong = (values < -SLACK) | (values > high + SLACK) | np.isinf(values)
    if complete:
        wrong |= np.isnan(values)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        expected = f"a number in 0..{high:g}" if np.isfinite(high) else "a finite number of 0 or more"
        others = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise columns.error(
            f"column {name!r}, row {row}: expected {expected}, got {values[row]:g}{others}",
            "Leave out rows without an outcome." if np.isnan(values[row]) else "",
        )
    return np.clip(values, 0.0, high)


def spread(column: Array, shape: tuple[int, int], i: Array, j: Array) -> Array:
    """[rows] -> [n, m]; NaN where there is no row."""
    wide = np.full(shape, np.nan)
    wide[i, j] = column
    return wide


def prompt_tokens(columns: Columns, shape: tuple[int, int], i: Array, j: Array) -> list[int | None]:
    """[n] the median prompt length over the models, tokens; None where no row states it."""
    if "input_tokens" not in columns:
        return [None] * shape[0]
    ordered = np.sort(spread(checked(columns, "input_tokens", columns.number("input_tokens")), shape, i, j), axis=1)
    known = np.isfinite(ordered).sum(axis=1)  # NaN sorts last
    rows = np.arange(shape[0])
    middle = (ordered[rows, np.maximum(known - 1, 0) // 2] + ordered[rows, np.minimum(known // 2, shape[1] - 1)]) / 2
    return [round(float(value)) if count else None for value, count in zip(middle, known, strict=True)]


def with_embeddings(outcomes: Outcomes, embeddings: Array) -> Outcomes:
    """The same table with an embedding for each query. embeddings: [n, d]; a row of NaN: this query has none."""
    if np.shape(embeddings)[:1] != (len(outcomes),) or np.ndim(embeddings) != 2:
        raise ShapeError("embeddings", got=np.shape(embeddings), expected=(len(outcomes), "d"))
    rows = np.asarray(embeddings, dtype=np.float32)
    known = np.atleast_1d(np.isfinite(rows).all(axis=1))
    queries = [replace(query, embedding=rows[q] if known[q] else None) for q, query in enumerate(outcomes.queries)]
    return replace(outcomes, queries=queries)


def complete(outcomes: Outcomes, metrics: Sequence[str] = ("quality", "cost")) -> Array:
    """[n] bool: queries that every candidate answered, with each of the metrics known."""
    whole = outcomes.observed.all(axis=1)
    for name in metrics:
        whole = whole & np.isfinite(outcomes.values[name]).all(axis=1)
    return whole
