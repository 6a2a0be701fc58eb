"""An operator's own decisions: if these signals, then these candidates. Three-valued, so that not knowing is not no.

A signal says whether it matches and how sure it is, or that it is not known (a classifier that timed out, a header
that was not sent). Conditions are trees of `All`, `Any` and `Not` over signal names and follow Kleene: what does not
hang on the unknown signal is decided, the rest is unknown. Then

- an ordinary rule applies where its condition is true, and not where it is unknown;
- a guard applies where its condition is true or unknown: a check that did not run has not passed. Guards are all
  asked, at every request, whatever an ordinary rule has said; they narrow the candidates, and one without candidates
  refuses. So no order or priority lets a rule about cost outrank one about safety.

`lint` finds, before any request, rules that can never win, pairs that contradict each other, and requests that no rule
serves. Source: the signal-decision engine of vLLM Semantic Router; that guards stand apart from priorities, and that
unknown has a value of its own, is added here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any as Anything
from typing import Literal, NamedTuple, TypeAlias

from polyroute.errors import ConfigError, UnknownNameError

Reading: TypeAlias = tuple[bool | None, float]  # does it match (None: not known), and the confidence that it does, 0..1
Readings: TypeAlias = Mapping[str, Reading]  # a name that is missing is not known
UNKNOWN: Reading = (None, 0.5)


@dataclass(frozen=True, slots=True)
class Is:
    """A signal matches. missing: what counts where it is not known; None: that stays unknown."""

    signal: str
    missing: bool | None = None


@dataclass(frozen=True, slots=True)
class Not:
    of: Condition


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds; without parts: always."""

    of: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Any:
    """Some part holds; without parts: never."""

    of: tuple[Condition, ...] = ()


Condition: TypeAlias = Is | Not | All | Any


def truth(condition: Condition, readings: Readings) -> bool | None:
    """Kleene's value of a condition: True, False, or None where it hangs on what is not known. All parts are read."""
    if isinstance(condition, Is):
        match = readings.get(condition.signal, UNKNOWN)[0]
        return condition.missing if match is None else match
    if isinstance(condition, Not):
        value = truth(condition.of, readings)
        return None if value is None else not value
    values = [truth(part, readings) for part in condition.of]
    decisive = isinstance(condition, Any)  # the value that settles it: one True settles Any, one False settles All
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def degree(condition: Condition, readings: Readings) -> tuple[float, float]:
    """(least, most) a condition may hold, 0..1: and = min, or = max, not = 1 - x of confidences; unknown is 0..1."""
    if isinstance(condition, Is):
        match, confidence = readings.get(condition.signal, UNKNOWN)
        if match is None:
            return (0.0, 1.0) if condition.missing is None else (float(condition.missing), float(condition.missing))
        return confidence, confidence
    if isinstance(condition, Not):
        low, high = degree(condition.of, readings)
        return 1 - high, 1 - low
    parts = [degree(part, readings) for part in condition.of]
    fold, empty = (max, 0.0) if isinstance(condition, Any) else (min, 1.0)
    return fold((low for low, _ in parts), default=empty), fold((high for _, high in parts), default=empty)


def confidence(condition: Condition, readings: Readings) -> float:
    """Mean confidence of the literals satisfied, 0..1: a signal that matches, or a negated one that does not."""
    sure = [p if wanted else 1 - p for match, p, wanted in literals(condition, readings) if match is wanted]
    return sum(sure) / len(sure) if sure else 1.0


def literals(
    condition: Condition, readings: Readings, wanted: bool = True
) -> Iterator[tuple[bool | None, float, bool]]:
    """(match, confidence, whether a match is wanted) of each signal in a condition."""
    if isinstance(condition, Is):
        yield (*readings.get(condition.signal, UNKNOWN), wanted)
    elif isinstance(condition, Not):
        yield from literals(condition.of, readings, not wanted)
    else:
        for part in condition.of:
            yield from literals(part, readings, wanted)


def signals_of(condition: Condition) -> frozenset[str]:
    """The signals a condition reads."""
    if isinstance(condition, Is):
        return frozenset({condition.signal})
    parts = (condition.of,) if isinstance(condition, Not) else condition.of
    return frozenset().union(*(signals_of(part) for part in parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """If `when`, then these candidates, chosen among by `choose`, with these plugins."""

    name: str
    when: Condition
    candidates: tuple[str, ...] = ()  # ids; a guard without any refuses
    priority: int = 0  # higher first; among equals the one written first
    choose: str = "first"  # name of the way to choose among several candidates; the caller's
    plugins: tuple[str, ...] = ()  # names, applied in this order; the caller's
    guard: bool = False

    def __post_init__(self) -> None:
        if not self.candidates and not self.guard:
            hint = "Only a guard may refuse: name candidates, or say guard = true."
            raise ConfigError(f"rules.{self.name}.candidates", got=(), expected="at least one id", hint=hint)


class Ruling(NamedTuple):
    """What the rules say of one request."""

    candidates: tuple[str, ...]  # may serve it, in the winning rule's order; empty: refused
    rule: str | None  # the ordinary rule that won; None: the default
    guards: tuple[str, ...]  # that narrowed or refused
    matched: tuple[str, ...]  # every ordinary rule whose condition is true
    unknown: tuple[str, ...]  # rules that hang on signals not known, guards among them
    confidence: float
    choose: str
    plugins: tuple[str, ...]  # the guards' first


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules and what to do where none applies.

    default: candidate ids for requests that no ordinary rule serves. best_by: which of several rules that apply wins,
    the one of highest priority or the one most confident.
    """

    rules: tuple[Rule, ...]
    default: tuple[str, ...] = ()
    best_by: Literal["priority", "confidence"] = "priority"

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"rules.{twice[0]}", got=twice[0], expected="each name once")

    @property
    def signals(self) -> frozenset[str]:
        """The signals worth reading: what no rule mentions need not be computed, what a guard mentions always must."""
        return frozenset().union(*(signals_of(rule.when) for rule in self.rules))

    def rule_on(self, readings: Readings) -> Ruling:
        """Decide one request. Every guard is asked; none is skipped because something else has decided."""
        values = [truth(rule.when, readings) for rule in self.rules]
        pairs = list(zip(self.rules, values, strict=True))
        guards = [rule for rule, value in pairs if rule.guard and value is not False]
        matched = [rule for rule, value in pairs if not rule.guard and value]
        won = min(matched, key=lambda rule: self.rank(rule, readings), default=None)
        candidates = self.default if won is None else won.candidates
        for guard in guards:
            kept = tuple(c for c in candidates if c in guard.candidates)
            candidates = kept or guard.candidates  # nobody of the rule's is left: the guard's own serve
        if any(not set(candidates) <= set(guard.candidates) for guard in guards):
            candidates = ()  # guards that leave nobody together
        return Ruling(
            candidates=candidates,
            rule=None if won is None else won.name,
            guards=tuple(rule.name for rule in guards),
            matched=tuple(rule.name for rule in matched),
            unknown=tuple(rule.name for rule, value in pairs if value is None),
            confidence=1.0 if won is None else confidence(won.when, readings),
            choose="first" if won is None else won.choose,
            plugins=tuple(p for rule in [*guards, *([won] if won else [])] for p in rule.plugins),
        )

    def rank(self, rule: Rule, readings: Readings) -> tuple[float, int]:
        """Smallest wins."""
        first = -float(rule.priority) if self.best_by == "priority" else -confidence(rule.when, readings)
        return first, self.rules.index(rule)


def condition_of(written: Anything, path: str = "when") -> Condition:
    """A condition from plain data, as TOML or JSON holds it.

    "sql" | {"not": ...} | {"all": [...]} | {"any": [...]} | {"is": "sql", "missing": true}
    Raises: ConfigError naming the place.
    """
    if isinstance(written, str) and written:
        return Is(written)
    if isinstance(written, Mapping):
        keys = set(written)
        if keys in ({"is"}, {"is", "missing"}) and isinstance(written["is"], str):
            if isinstance(written.get("missing", False), bool):
                return Is(written["is"], written.get("missing"))
            raise ConfigError(f"{path}.missing", got=written["missing"], expected="true or false")
        if keys == {"not"}:
            return Not(condition_of(written["not"], f"{path}.not"))
        for key, kind in (("all", All), ("any", Any)):
            if keys == {key} and isinstance(written[key], Sequence) and not isinstance(written[key], str):
                return kind(tuple(condition_of(p, f"{path}.{key}[{i}]") for i, p in enumerate(written[key])))
    expected = 'a signal\'s name, or a table with one of "all", "any", "not", "is"'
    raise ConfigError(path, got=written, expected=expected)


KEYS = ("name", "when", "candidates", "priority", "choose", "plugins", "guard")


def rules_from(written: Mapping[str, Anything]) -> Rules:
    """Rules from plain data: {"rules": [{"name", "when", "candidates", ...}], "default": [...], "best_by": "priority"}.

    Raises: ConfigError or UnknownNameError naming the place.
    """
    for key in written:
        if key not in ("rules", "default", "best_by"):
            raise UnknownNameError("key", key, ("rules", "default", "best_by"))
    found = []
    for i, row in enumerate(written.get("rules", ())):
        if unknown := [key for key in row if key not in KEYS]:
            raise UnknownNameError(f"key of rules[{i}]", unknown[0], KEYS)
        if not isinstance(row.get("name"), str) or "when" not in row:
            raise ConfigError(f"rules[{i}]", got=sorted(row), expected="a table with name and when")
        fields: dict[str, Anything] = {key: row[key] for key in ("priority", "choose", "guard") if key in row}
        fields |= {key: tuple(row[key]) for key in ("candidates", "plugins") if key in row}
        found.append(Rule(name=row["name"], when=condition_of(row["when"], f"rules[{i}].when"), **fields))
    best_by = written.get("best_by", "priority")
    if best_by not in ("priority", "confidence"):
        raise ConfigError("best_by", got=best_by, expected="priority or confidence")
    return Rules(tuple(found), tuple(written.get("default", ())), best_by)
