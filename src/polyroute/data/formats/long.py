"""The long table that everything else reads, gathered answer by answer from files of other forms."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute.data.checks import CHARACTERS_PER_TOKEN, same_text
from polyroute.data.export import write_whole
from polyroute.errors import MissingExtraError, OutcomesError
from polyroute.types import Profile

SHARES = (("train", 0.7), ("valid", 0.8), ("test", 1.0))  # cumulative: 70 % train, 10 % valid, 20 % test


class Answer(NamedTuple):
    """One model's answer to one query."""

    query_id: str
    query: str
    model: str
    score: float  # 0..1; NaN: not graded, so not an outcome
    dataset: str = ""
    split: str = ""  # train, valid or test; empty: the source has none
    cost_usd: float | None = None  # None: the source does not say
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass
class Long:
    """Answers in the order they came; one for each query and model."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # what was left out, and how often

    def add(self, answer: Answer) -> None:
        """Keep an answer, unless it has no score or there is one for this query and model."""
        key = (answer.query_id, answer.model)
        if math.isnan(answer.score):
            self.counts["answers without a score, left out"] += 1
        elif key in self.answers:
            self.counts["further answers of a model to the same query, left out"] += 1
        else:
            self.answers[key] = answer


def priced(answer: Answer, prices: Mapping[str, Profile]) -> float:
    """Cost in USD: as stated, else tokens at list price (characters over four where not counted), else 0."""
    if answer.cost_usd is not None:
        return answer.cost_usd
    if answer.model not in prices:
        return 0.0
    read = len(answer.query) / CHARACTERS_PER_TOKEN if answer.input_tokens is None else answer.input_tokens
    profile = prices[answer.model]
    return (read * profile.price_in + (answer.output_tokens or 0.0) * profile.price_out) / 1e6


def columns_of_answers(long: Long, prices: Mapping[str, Profile], *, new_splits: bool = False) -> dict[str, list[Any]]:
    """Column -> values of the long table. new_splits: drawn anew even where the source has splits.

    Queries of one text share a group; splits drawn here are by a hash of the group, so copies stay together.
    Raises: OutcomesError where no answer is left, or only some queries have a split.
    """
    answers = list(long.answers.values())
    if not answers:
        raise OutcomesError("expected at least one graded answer, got none.")
    texts = {answer.query_id: answer.query for answer in answers}
    group = dict(zip(texts, groups(list(texts.values())), strict=True))
    own = {answer.query_id: answer.split for answer in answers}
    if any(own.values()) and not all(own.values()) and not new_splits:
        raise OutcomesError("expected a split for every query or for none, got some. Draw new ones (--new-splits).")
    if new_splits or not any(own.values()):
        own = {query_id: split_of_group(name) for query_id, name in group.items()}
    known: dict[str, Callable[[Answer], Any]] = {
        "query_id": lambda a: a.query_id, "dataset": lambda a: a.dataset, "split": lambda a: own[a.query_id],
        "group_id": lambda a: group[a.query_id], "query": lambda a: texts[a.query_id], "model": lambda a: a.model,
        "score": lambda a: float(a.score), "cost_usd": lambda a: priced(a, prices),
        "cost_kind": lambda a: "recorded" if a.cost_usd is not None else "estimated",
        "input_tokens": lambda a: a.input_tokens, "output_tokens": lambda a: a.output_tokens,
    }  # fmt: skip
    found = {name: [value(answer) for answer in answers] for name, value in known.items()}
    return {name: column for name, column in found.items() if any(value not in (None, "") for value in column)}


def groups(texts: list[str]) -> list[str]:
    """A name for each text, the same for copies."""
    code = same_text(texts)
    first: dict[int, str] = {}
    for k, text in zip(code.tolist(), texts, strict=True):
        first.setdefault(k, hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
    return [first[k] for k in code.tolist()]


def split_of_group(name: str) -> str:
    """train, valid or test, from a hash of the group's name: the same in every file."""
    at = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64
    return next(split for split, bound in SHARES if at < bound)


def write_columns(columns: Mapping[str, list[Any]], path: Path) -> None:
    """Write a Parquet table."""
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    arrays = {name: pa.array(np.array(c, float) if name in NUMBERS else c) for name, c in columns.items()}
    coded = {name: a.dictionary_encode() if pa.types.is_string(a.type) else a for name, a in arrays.items()}
    write_whole(pa.table(coded), path)


NUMBERS = {"score", "cost_usd", "input_tokens", "output_tokens"}
