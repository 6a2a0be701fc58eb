"""The public outcome tables proofs run on. They are not part of the package: POLYROUTE_DATA names their folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from polyroute.data.columns import read_columns
from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.recorded import recorded_embeddings
from polyroute.errors import OutcomesError
from polyroute.offline.split import group_folds, groups_of
from polyroute.types import Array, Candidate, Outcomes


def data_folder() -> Path:
    """The folder of the tables. Raises: OutcomesError saying how to name it."""
    folder = Path(os.environ.get("POLYROUTE_DATA", "../shared/data"))
    if not (folder / "outcomes").is_dir():
        raise OutcomesError(f"{folder}: expected a folder with outcomes/*.parquet, got none. Set POLYROUTE_DATA to it.")
    return folder


def full_table(name: str, splits: Sequence[str] = ("train", "valid")) -> Outcomes:
    """The queries of a table that every model answered, with the recorded MiniLM embeddings.

    splits: which of the table's fixed splits; a proof holds out groups of its own and leaves `test` to the benchmark.
    """
    path = data_folder() / "outcomes" / f"{name}.parquet"
    outcomes = load_outcomes(path)
    outcomes = outcomes.take(complete(outcomes) & np.isin(outcomes.labels["split"], list(splits)))
    outcomes = with_embeddings(outcomes, recorded_embeddings([q.id for q in outcomes.queries], path))
    return outcomes.take(np.array([q.embedding is not None for q in outcomes.queries]))


def held_out(outcomes: Outcomes, seed: int, num_folds: int = 4) -> tuple[Outcomes, Outcomes]:
    """(train, held out): a seeded quarter of the groups is held out; near-duplicates stay together."""
    fold = group_folds(groups_of(outcomes), num_folds, seed)
    return outcomes.take(fold != 0), outcomes.take(fold == 0)


def each_held_out(outcomes: Outcomes, seed: int, num_folds: int = 4) -> Iterator[tuple[Outcomes, Outcomes, Array]]:
    """(train, held out, rows held out) for each fold of the groups in turn, so that every query is held out once."""
    fold = group_folds(groups_of(outcomes), num_folds, seed)
    for k in range(num_folds):
        yield outcomes.take(fold != k), outcomes.take(fold == k), np.flatnonzero(fold == k)


def shuffled(outcomes: Outcomes, rng: np.random.Generator) -> Outcomes:
    """The same queries with each other's outcomes: whatever a router learned about texts is wrong now."""
    order: Array = rng.permutation(len(outcomes))
    return Outcomes(
        outcomes.queries,
        outcomes.pool,
        {name: values[order] for name, values in outcomes.values.items()},
        outcomes.observed[order],
        outcomes.labels,
    )


def sizes_of(outcomes: Outcomes) -> dict[str, float]:
    """Billions of parameters, as the models' names say."""
    return {c.id: float(re.search(r"-(\d+)b", c.id).group(1)) for c in outcomes.pool}  # type: ignore[union-attr]


def mmlu_subjects(seen: Outcomes | None = None) -> tuple[Outcomes, Array]:
    """The MMLU questions of RouteLLM (train and valid) and each one's subject [n] str, as in `source_id`."""
    outcomes = full_table("routellm") if seen is None else seen
    outcomes = outcomes.take(outcomes.labels["dataset"] == "mmlu")
    columns = read_columns(data_folder() / "outcomes" / "routellm.parquet", ("query_id", "source_id"))
    ids, sources = columns.text("query_id"), columns.text("source_id")
    subject = {ids.values[i]: sources.values[s] for i, s in zip(ids.codes, sources.codes, strict=True)}
    return outcomes, np.array([subject[q.id] for q in outcomes.queries])


def one_hot(outcomes: Outcomes, label: Array, classes: Sequence[Candidate]) -> Outcomes:
    """The same queries with quality 1 for the class that is their label [n] str and 0 for every other."""
    right = (np.asarray(label)[:, None] == np.array([c.id for c in classes])[None]).astype(float)
    return Outcomes(outcomes.queries, classes, {"quality": right}, np.ones(right.shape, dtype=bool), outcomes.labels)
