"""Read TwinRouterBench's static track: steps of recorded agent runs, each with the cheapest tier that still passes.

The file is `question_bank.jsonl` (github.com/CommonstackAI/TwinRouterBench, data/static): a JSON object a line with
`id, benchmark, instance_id, step_index, total_steps, messages, target_tier, target_tier_id`. It has no split.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from polyroute.data.formats.files import json_lines, need, number
from polyroute.errors import OutcomesError
from polyroute.types import Array

TIERS = ("low", "mid", "mid_high", "high")
NEEDED = ("id", "benchmark", "messages", "target_tier_id")
SAME = ("role", "content", "tool_calls", "tool_call_id", "name")  # what makes two messages the same to a cache
PER_MESSAGE, PER_PROMPT = 4, 2  # tokens of roles and separators

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """Steps in order of trajectory and place. s steps."""

    ids: Sequence[str]
    benchmark: Array  # [s] text
    trajectory: Array  # [s] text: steps of one run share it
    place: Array  # [s] int, from 1 within the run
    gold: Array  # [s] int: 0 low to 3 high
    messages: Sequence[Sequence[Message]]  # what the model sees
    prompt_tokens: Array  # [s]
    shared_tokens: Array  # [s] tokens at its start that the step before had sent already; 0 where it is no continuation
    output_tokens: Array  # [s] of the answer, read off the next step's prompt; the run's mean, else NaN, where unknown

    def __len__(self) -> int:
        return len(self.ids)


def load_steps(path: Path | str, *, count: Callable[[str], float] | None = None) -> StepTable:
    """The question bank. count: tokens of a text; None: its UTF-8 bytes / 4, a rule of thumb.

    Raises: OutcomesError naming the line or row that does not fit, and repeated ids.
    """
    path = Path(path)
    if not path.is_file():
        raise OutcomesError(f"{path}: expected question_bank.jsonl of TwinRouterBench, got no such file.")
    rows = list(json_lines(path))
    tokens = count or (lambda text: len(text.encode("utf-8", "replace")) / 4)
    for row in rows:
        check(path, row)
    if len({row["id"] for row in rows}) < len(rows):
        twice = Counter(row["id"] for row in rows).most_common(1)[0][0]
        raise OutcomesError(f"{path}: expected each id once, got {twice!r} twice. Drop one of the rows.")
    runs: dict[str, list[Message]] = {}
    for row in sorted(rows, key=place_of):
        runs.setdefault(str(row.get("instance_id", row["id"])), []).append(row)
    ordered = [(run, row) for run, steps in runs.items() for row in steps]
    sizes = [size for steps in runs.values() for size in measured(steps, tokens)]
    return StepTable(
        [str(row["id"]) for _, row in ordered],
        np.array([str(row["benchmark"]) for _, row in ordered]),
        np.array([run for run, _ in ordered]),
        np.array([place_of(row) for _, row in ordered], dtype=int),
        np.array([int(row["target_tier_id"]) for _, row in ordered], dtype=int),
        [row["messages"] for _, row in ordered],
        *np.array(sizes, dtype=float).reshape(-1, 3).T,
    )


def place_of(row: Message) -> int:
    return int(row.get("step_index") or 1)


def check(path: Path, row: Message) -> None:
    """Raises: OutcomesError where a row lacks a field, has an unknown tier or messages that are none."""
    need(path, row, NEEDED)
    tier = number(path, "target_tier_id", row["target_tier_id"])
    if tier not in range(len(TIERS)):
        raise OutcomesError(f"{path}, id {row['id']!r}: expected target_tier_id 0 to 3, got {row['target_tier_id']!r}.")
    if row.get("target_tier", TIERS[int(tier)]) != TIERS[int(tier)]:
        said = row["target_tier"]
        raise OutcomesError(f"{path}, id {row['id']!r}: expected target_tier {TIERS[int(tier)]!r}, got {said!r}.")
    if not isinstance(row["messages"], list) or not all(isinstance(m, dict) for m in row["messages"]):
        raise OutcomesError(f"{path}, id {row['id']!r}: expected messages to be a list of objects.")


def measured(steps: Sequence[Message], tokens: Callable[[str], float]) -> list[tuple[float, float, float]]:
    """Prompt, shared and output tokens of one run's steps."""
    prompts = [prompt_size(step["messages"], tokens) for step in steps]
    outputs = [written(a["messages"], b["messages"], tokens) for a, b in pairwise(steps)]
    known = [size for size in outputs if size > 0]
    outputs.append(float(np.mean(known)) if known else float("nan"))
    shared = [0.0]
    for k in range(1, len(steps)):
        before, now = steps[k - 1]["messages"], steps[k]["messages"]
        shared.append(prompts[k - 1] if same_start(before, now) else 0.0)
    return list(zip(prompts, shared, outputs, strict=True))


def prompt_size(messages: Sequence[Message], tokens: Callable[[str], float]) -> float:
    return sum(tokens(text_of(m)) + PER_MESSAGE for m in messages) + PER_PROMPT


def written(before: Sequence[Message], after: Sequence[Message], tokens: Callable[[str], float]) -> float:
    """Tokens that the assistant wrote between two prompts."""
    new = [m for m in after[len(before) :] if m.get("role") == "assistant"]
    return sum(tokens(text_of(m)) + PER_MESSAGE for m in new)


def same_start(before: Sequence[Message], now: Sequence[Message]) -> bool:
    """Whether a prompt continues the one before, so that a cache of it can be read."""
    return len(before) <= len(now) and all(
        all(plain(a.get(key)) == plain(b.get(key)) for key in SAME) for a, b in zip(before, now, strict=False)
    )


def plain(content: Any) -> Any:
    """A content as text, whichever of the two chat forms it has; anything else as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "\n".join(str(part["text"]) for part in content)
    return content


def text_of(message: Message) -> str:
    """Everything of a message that is paid for: its text, and the names and arguments of tool calls."""
    content = plain(message.get("content"))
    parts = [content if isinstance(content, str) else "" if content is None else json.dumps(content)]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        given = function.get("arguments", "")
        parts += [str(function.get("name", "")), given if isinstance(given, str) else json.dumps(given)]
    return "\n".join(part for part in parts if part)
