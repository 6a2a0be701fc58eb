"""Tables with features, as fit, eval and predict need them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from polyroute.cli.progress import Steps, say
from polyroute.data.from_journal import load_journal
from polyroute.data.outcomes import complete, load_outcomes, with_embeddings
from polyroute.data.recorded import RECORDED_MINILM, recorded_embeddings
from polyroute.errors import ConfigError, OutcomesError, UnknownNameError
from polyroute.offline.split import part
from polyroute.signals import FEATURISERS, featuriser
from polyroute.signals.tokens import count_tokens
from polyroute.types import Array, Outcomes, Query

FEATURES = (*FEATURISERS, RECORDED_MINILM)
BATCH = 64  # texts between two reports of progress


def writable(option: str, path: Path, *suffixes: str, read: Sequence[Path] = ()) -> None:
    """Complain now about an output that could not be written after the work, or would end one of the files `read`.

    Raises: ConfigError naming the option.
    """
    if path.suffix not in suffixes:
        raise ConfigError(option, got=str(path), expected=f"a file name ending in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigError(option, got=str(path), expected="a file in a folder that exists")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(option, got=str(path), expected="a file that may be written")
    if path.exists() and any(other.exists() and path.samefile(other) for other in read):
        raise ConfigError(option, got=str(path), expected="another file than the one that is read")


def is_journal(path: Path) -> bool:
    """Whether a file is an SQLite database, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\x00"
    except OSError:
        return False  # whoever reads it next says what is wrong


def read_outcomes(path: Path, features: str, *, allow_shared_groups: bool = False, any_cost: bool = False) -> Outcomes:
    """A Parquet table or a journal. A journal brings the embeddings it recorded; tables get theirs from `embedded`."""
    if is_journal(path):
        return load_journal(path, features=features)
    return load_outcomes(path, allow_shared_groups=allow_shared_groups, any_cost=any_cost)


def embedded(outcomes: Outcomes, features: str, table: Path) -> Outcomes:
    """The same table with features for each query; queries that can have none are left out, and that is said.

    Raises: OutcomesError where no query can have features.
    """
    found = with_embeddings(outcomes, vectors(outcomes.queries, features, table))
    known = np.array([query.embedding is not None for query in found.queries])
    if not known.any():
        raise OutcomesError(f"{table}: expected texts or recorded embeddings to route on, got none for any query.")
    if not known.all():
        say(f"{int((~known).sum())} of {len(known)} queries have no text and are left out")
    return found.take(known)


def split_of(outcomes: Outcomes, split: str, table: Path) -> Outcomes:
    """The queries of one fixed split. Raises: OutcomesError naming the table, where it has no such split."""
    try:
        return part(outcomes, split)
    except OutcomesError as problem:
        raise OutcomesError(f"{table}: {problem}") from None


def vectors(queries: Sequence[Query], features: str, table: Path) -> Array:
    """[n, d] float32; a row of NaN where a query has neither a text nor a recorded embedding."""
    if features == RECORDED_MINILM:
        return recorded_embeddings([query.id for query in queries], table)
    if features not in FEATURISERS:
        raise UnknownNameError("features", features, FEATURES)
    without = [i for i, query in enumerate(queries) if query.embedding is None and query.text]
    recorded = {i: query.embedding for i, query in enumerate(queries) if query.embedding is not None}
    make = featuriser(features) if without or not recorded else None
    dim = make.dim if make else len(next(iter(recorded.values())))
    rows = np.full((len(queries), dim), np.nan, dtype=np.float32)
    for i, embedding in recorded.items():
        if len(embedding) != dim:
            raise OutcomesError(
                f"{table}: query {queries[i].id!r}: expected {dim} numbers by {features}, got {len(embedding)}. "
                f"Name the featuriser that wrote them with --features."
            )
        rows[i] = embedding
    if make is None:
        return rows
    with Steps(f"embedding with {features}", len(without)) as steps:
        for start in range(0, len(without), BATCH):
            batch = without[start : start + BATCH]
            rows[batch] = make([queries[i].text for i in batch])
            steps.at(start + len(batch))
    return rows


def counted(queries: Sequence[Query], *, anew: bool = False) -> list[Query]:
    """The same queries with prompt tokens, estimated from the text where the table does not state them.

    anew: also where it does; a table may state the tokens of a longer prompt than the text that is routed.
    """
    if anew:
        queries = [replace(q, num_tokens=None) if q.text else q for q in queries]
    return [q if q.num_tokens is not None else replace(q, num_tokens=count_tokens(q.text)) for q in queries]


def with_outcomes(outcomes: Outcomes) -> Outcomes:
    """Only the models that have an outcome; which others there are is said, since nothing can be learned of them."""
    seen = (outcomes.observed & np.isfinite(outcomes.values["quality"])).any(axis=0)
    if not seen.all():
        left = ", ".join(c.id for c, has in zip(outcomes.pool, seen, strict=True) if not has)
        say(f"without an outcome, so left out: {left}; with --prior they are estimated from it")
    return outcomes.among([c.id for c, has in zip(outcomes.pool, seen, strict=True) if has])


def answered(outcomes: Outcomes, table: Path, hint: str = "") -> Outcomes:
    """The queries that every model answered; how many are left out is said, and for whose sake. hint: what else to do.

    Raises: OutcomesError where there is none.
    """
    rows = complete(outcomes)
    if not rows.any():
        raise OutcomesError(
            f"{table}: expected queries that all {len(outcomes.pool)} models answered, got none among {len(outcomes)}. "
            f"A choice can only be replayed where each model's outcome is known."
            + (f" {rare(outcomes)}; {hint}." if hint else f" {rare(outcomes)}.")
        )
    if (left := int((~rows).sum())) > 0:
        told = f"{left} of {len(rows)} queries lack a model's outcome and are left out"
        if 10 * left >= len(rows):
            told = f"warning: {told}: {rare(outcomes)}"
        say(f"{told}; {hint}" if hint else told)
    return outcomes.take(rows)


def with_newcomers(outcomes: Outcomes) -> bool:
    """Whether more than a tenth of the queries lack a model's outcome; that they are kept is then said, with whose."""
    left = int((~complete(outcomes)).sum())
    if 10 * left <= len(outcomes):
        return False
    say(f"{left} of {len(outcomes)} queries lack a model's outcome and are learned from as they are: {rare(outcomes)}")
    return True


def rare(outcomes: Outcomes) -> str:
    """The models with the fewest outcomes, in words, three at most."""
    count = outcomes.observed.sum(axis=0)
    fewest = [j for j in np.argsort(count, kind="stable")[:3] if count[j] < len(outcomes)]
    return ", ".join(f"{outcomes.pool[j].id} answered {count[j]:,} of {len(outcomes):,}" for j in fewest)
