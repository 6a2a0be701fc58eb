"""Look at rules before any request does: what can never win, what contradicts itself, what nobody serves.

Signals are few, so every combination of matches is tried; beyond 14 signals a fixed number of combinations drawn by a
seed: then `conflict` and `uncovered` are still real where found, but `never`, `always` and `shadowed` only likely, and
what was not found may still exist. `Report.complete` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np

from polyroute.policies.rules import All, Condition, Is, Not, Rule, Rules, signals_of
from polyroute.types import Array

EXHAUSTIVE = 14  # signals of which every combination is tried: 16,384
DRAWN = 16_384  # combinations tried of more signals


class Issue(NamedTuple):
    """One finding. kind: never, always, shadowed, conflict, uncovered, unknown-signal or unknown-candidate."""

    kind: str
    rules: tuple[str, ...]
    message: str
    example: Mapping[str, bool] = {}  # signals of one request that shows it


@dataclass(frozen=True, slots=True)
class Report:
    """What `lint` found. complete: every combination of signals was tried."""

    issues: tuple[Issue, ...]
    complete: bool

    def of(self, kind: str) -> list[Issue]:
        return [issue for issue in self.issues if issue.kind == kind]


def lint(
    rules: Rules,
    *,
    signals: Collection[str] | None = None,
    candidates: Collection[str] | None = None,
    exclusive: Sequence[Collection[str]] = (),
) -> Report:
    """Everything worth a look in these rules.

    signals, candidates: names there are; None: not checked. exclusive: sets of signals of which at most one matches
    at a time, as the domains of one classifier.
    """
    names = sorted(rules.signals)
    table = combinations_of(len(names))
    for group in exclusive:
        columns = [names.index(name) for name in group if name in names]
        table = table[table[:, columns].sum(axis=1) <= 1]
    column = {name: table[:, j] for j, name in enumerate(names)}
    holds = {rule.name: np.broadcast_to(values(rule.when, column), len(table)) for rule in rules.rules}

    def example(rows: Array) -> dict[str, bool]:
        """The combination with the fewest matches among some rows."""
        at = np.flatnonzero(rows)
        row = table[at[table[at].sum(axis=1).argmin()]]
        return {name: bool(value) for name, value in zip(names, row, strict=True)}

    found = [*unknown_names(rules, signals, candidates), *constant_rules(rules, holds)]
    found += shadowed(rules, holds, example) if rules.best_by == "priority" else []
    found += conflicts(rules, holds, example)
    served = np.any([holds[r.name] for r in rules.rules if not r.guard] or [np.zeros(len(table), bool)], axis=0)
    if not rules.default and not served.all():
        found.append(Issue("uncovered", (), "no rule applies and there is no default", example(~served)))
    return Report(tuple(found), len(names) <= EXHAUSTIVE)


Example: TypeAlias = Callable[[Array], Mapping[str, bool]]


def shadowed(rules: Rules, holds: Mapping[str, Array], example: Example) -> Iterator[Issue]:
    """Ordinary rules that never win, because rules that come first apply wherever they do."""
    before: list[Rule] = []
    for rule in sorted((r for r in rules.rules if not r.guard), key=lambda r: -r.priority):  # stable: order breaks ties
        own = holds[rule.name]
        guilty = [r.name for r in before if (holds[r.name] & own).any()]
        if guilty and (np.any([holds[name] for name in guilty], axis=0) | ~own).all():
            message = f"{rule.name} never wins: wherever it applies, {', '.join(guilty)} come first"
            yield Issue("shadowed", (rule.name, *guilty), message, example(own))
        before.append(rule)


def conflicts(rules: Rules, holds: Mapping[str, Array], example: Example) -> Iterator[Issue]:
    """Pairs that may apply together and disagree: rules of one priority, and guards that leave nobody."""
    for one, two in combinations(rules.rules, 2):
        both = holds[one.name] & holds[two.name]
        if one.guard != two.guard or not both.any():
            continue
        names = (one.name, two.name)
        if one.guard:
            if one.candidates and two.candidates and not set(one.candidates) & set(two.candidates):
                message = f"guards {one.name} and {two.name} leave nobody where both apply: such requests are refused"
                yield Issue("conflict", names, message, example(both))
        elif (
            rules.best_by == "priority" and one.priority == two.priority and set(one.candidates) != set(two.candidates)
        ):
            message = f"{one.name} and {two.name} have priority {one.priority} and may apply together: order decides"
            yield Issue("conflict", names, message, example(both))


def combinations_of(num: int) -> Array:
    """[c, num] bool: every combination of matches, or DRAWN of them with the two plainest first."""
    if num <= EXHAUSTIVE:
        return (np.arange(1 << num)[:, None] >> np.arange(num) & 1).astype(bool)
    drawn = np.random.default_rng(0).random((DRAWN, num)) < np.random.default_rng(1).random((DRAWN, 1))
    drawn[0], drawn[1] = False, True
    return drawn


def values(condition: Condition, column: Mapping[str, Array]) -> Array:
    """[c] bool: where a condition holds. column: signal -> [c], all known."""
    if isinstance(condition, Is):
        return column[condition.signal]
    if isinstance(condition, Not):
        return ~values(condition.of, column)
    every = isinstance(condition, All)
    fold = np.logical_and if every else np.logical_or
    return reduce(fold, (values(part, column) for part in condition.of), np.bool_(every))


def constant_rules(rules: Rules, holds: Mapping[str, Array]) -> Iterator[Issue]:
    """Rules that never apply, and guards that always do."""
    for rule in rules.rules:
        if not holds[rule.name].any():
            yield Issue("never", (rule.name,), f"{rule.name}: no combination of signals makes its condition true")
        elif rule.guard and holds[rule.name].all():
            yield Issue("always", (rule.name,), f"{rule.name}: this guard applies to every request")


def unknown_names(rules: Rules, signals: Collection[str] | None, candidates: Collection[str] | None) -> Iterator[Issue]:
    """Signals and candidates that do not exist."""
    for name in sorted(rules.signals - set(rules.signals if signals is None else signals)):
        users = tuple(rule.name for rule in rules.rules if name in signals_of(rule.when))
        yield Issue("unknown-signal", users, f"{name!r} is read by {', '.join(users)} and nothing computes it")
    for rule in rules.rules:
        for name in rule.candidates if candidates is not None else ():
            if name not in (candidates or ()):
                yield Issue("unknown-candidate", (rule.name,), f"{rule.name} names {name!r}, which is not in the pool")
