"""Reads tables of plain data into frozen dataclasses and accepts nothing that was not asked for.

A section is a dataclass whose fields were made by `option`; the reader, the JSON Schema and the documentation
(schema.py) all come from these fields. Every problem is collected with its path; none is guessed away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from math import isfinite, isnan
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from polyroute.errors import ConfigError, nearest

Section = TypeVar("Section")
BAD: Final = object()  # stands for a value whose problem has been noted
REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


class Secret:
    """A value that never shows: only its place in the environment is printed, and `reveal` gives it."""

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str | None):
        self.name, self._value = name, value

    def reveal(self) -> str:
        """The value. Raises: ConfigError where the environment was not read."""
        if self._value is None:
            raise ConfigError(f"env:{self.name}", got="an environment that was not read", expected="its value")
        return self._value

    def __repr__(self) -> str:
        return f"Secret(env:{self.name})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self.name, self._value) == (other.name, other._value)

    def __hash__(self) -> int:
        return hash(self.name)


class Words:
    """Stands in a message for a value: as these words, and not as itself."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


UNSHOWN: Final = Words("a literal value (not shown)")


def option(
    about: str,
    default: Any = MISSING,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    infinite: bool = False,
    pattern: str | None = None,
    unit: str = "",
    each: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """A field of a section.

    about: one sentence for people. default: a value, or the class that makes one; without it the key is required.
    above, least, most: bounds of a number, or of each number in it. infinite: `inf` is a value.
    pattern: what a text must match as a whole. each: field -> options, for a section whose class has none.
    """
    metadata = {
        "about": about, "above": above, "least": least, "most": most, "infinite": infinite, "pattern": pattern,
        "unit": unit, "each": each or {},
    }  # fmt: skip
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """For `__post_init__`: every field within its bounds. Raises: ConfigError naming the field."""
    for it in fields(config):
        value = getattr(config, it.name)
        if isinstance(value, (int, float, str)) and (expected := fault(it.metadata, value)):
            raise ConfigError(it.name, got=value, expected=expected)


def fault(rules: Mapping[str, Any], value: Any) -> str:
    """What was expected of a value that breaks the rules; empty where it keeps them."""
    if isinstance(value, str):
        pattern = rules.get("pattern")
        return f"text that matches {pattern}" if pattern and not re.fullmatch(pattern, value) else ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    above, least, most, unit = (rules.get(name) for name in ("above", "least", "most", "unit"))
    if (
        isnan(value)
        or (not isfinite(value) and not rules.get("infinite"))
        or (above is not None and not value > above)
        or (least is not None and not value >= least)
        or (most is not None and not value <= most)
    ):
        bounds = [f"above {above:g}"] if above is not None else []
        bounds += [f"{least:g} or more"] if least is not None else []
        bounds += [f"at most {most:g}"] if most is not None else []
        return ", ".join([f"a finite number{' of ' + unit if unit else ''}", *bounds])
    return ""


def hints(section: type) -> dict[str, Any]:
    """Field name -> type, resolved."""
    return get_type_hints(section)


def rules_of(it: Any, each: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a field: its own, or those its section's owner gave for it."""
    return {**it.metadata, **each.get(it.name, {})}


def is_list(kind: Any) -> bool:
    return get_origin(kind) in (tuple, frozenset)


def without_none(kind: Any) -> Any:
    """X of `X | None`."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


class Reader:
    """Reads one document. base: the folder relative paths start from. environment: None leaves secrets unread."""

    def __init__(self, base: Path, environment: Mapping[str, str] | None):
        self.base, self.environment = base, environment
        self.problems: list[ConfigError] = []
        self.belongs: dict[str, str] = {}  # key -> the section it is known in, for a key in the wrong place

    def note(self, path: str, got: Any, expected: str, hint: str = "") -> object:
        """Collect a problem."""
        self.problems.append(ConfigError(path, got=got, expected=expected, hint=hint))
        return BAD

    def document(self, section: type[Section], content: Mapping[str, Any]) -> Section | None:
        """The whole document, or None with `problems`."""
        self.belongs = dict(places(section))
        found = self.table(section, content, "", {})
        return None if found is BAD or self.problems else found

    def table(self, section: type[Section], content: Any, path: str, each: Mapping[str, Any]) -> Any:
        """A section, or BAD."""
        if not isinstance(content, Mapping):
            return self.note(path, content, "a table", f"Write [{path}] and its keys below.")
        known = {it.name: it for it in fields(section) if it.metadata.get("about") or each}  # type: ignore[arg-type]
        before = len(self.problems)
        values, kinds = {}, hints(section)
        for key, value in content.items():
            if key not in known:
                self.unknown(join(path, key), key, list(known))
            else:
                values[key] = self.value(kinds[key], value, join(path, key), rules_of(known[key], each))
        for name, it in known.items():
            if name not in content and it.default is MISSING and it.default_factory is MISSING:
                self.note(join(path, name), Words("nothing"), "this key, which has no default", it.metadata["about"])
        if len(self.problems) > before:
            return BAD
        try:
            return section(**values)
        except ConfigError as error:
            inside = error.path.removeprefix(f"{path}.")
            return self.note(f"{path}.{inside}", error.got, error.expected, error.hint)

    def unknown(self, path: str, key: str, known: list[str]) -> None:
        """Note a key that nobody reads, with the one that may have been meant."""
        near = nearest(key, known)
        elsewhere = key if key in self.belongs else None if near else nearest(key, self.belongs)
        hint = f"Did you mean {near!r}?" if near else ""
        if elsewhere:
            hint = f"Did you mean {elsewhere!r} in {self.belongs[elsewhere]}?"
        self.note(path, key, f"a known key ({', '.join(known)})", hint)

    def value(self, kind: Any, value: Any, path: str, rules: Mapping[str, Any]) -> Any:
        """One value of the kind a field's type asks for, or BAD."""
        kind = without_none(kind)
        if is_dataclass(kind) and isinstance(kind, type):
            return self.table(kind, value, path, rules.get("each", {}))
        if kind is Secret:
            return self.secret(value, path)
        if is_list(kind):
            return self.items(kind, value, path, rules)
        if get_origin(kind) is not None and kind.__origin__ is not Literal:
            return self.mapping(get_args(kind)[1], value, path, rules)
        return self.scalar(kind, value, path, rules)

    def scalar(self, kind: Any, value: Any, path: str, rules: Mapping[str, Any]) -> Any:
        """Text, number, flag, path, or one of several words."""
        if get_origin(kind) is Literal:
            words = get_args(kind)
            near = nearest(value, words) if isinstance(value, str) else None
            hint = f"Did you mean {near!r}?" if near else ""
            return value if value in words else self.note(path, value, f"one of {', '.join(words)}", hint)
        wanted, name = {
            str: (str, "text"), Path: (str, "a path"), bool: (bool, "true or false"),
            int: (int, "a whole number"), float: ((int, float), "a number"),
        }[kind]  # fmt: skip
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):  # type: ignore[arg-type]
            quoted = isinstance(value, str) and kind in (int, float, bool)
            hint = "Write it without quotes." if quoted else "Put it in quotes." if kind in (str, Path) else ""
            return self.note(path, value, name, hint)
        if expected := fault(rules, value):
            return self.note(path, value, expected)
        if kind is Path:
            return self.at(str(value)) if value else self.note(path, value, "a path")
        return float(value) if kind is float else value

    def at(self, value: str) -> Path:
        """A path of the document: ~ is the home folder, and a relative one starts from the document's folder."""
        return (self.base / Path(value).expanduser()).absolute()

    def items(self, kind: Any, value: Any, path: str, rules: Mapping[str, Any]) -> Any:
        """A list of values; a set for a frozenset."""
        if not isinstance(value, list):
            return self.note(path, UNSHOWN if Secret in get_args(kind) else value, "a list", "Write [...] around it.")
        inner = get_args(kind)[0]
        found = [self.value(inner, item, f"{path}[{i}]", rules) for i, item in enumerate(value)]
        return BAD if any(item is BAD for item in found) else get_origin(kind)(found)

    def mapping(self, inner: Any, value: Any, path: str, rules: Mapping[str, Any]) -> Any:
        """Names of the operator's own -> values."""
        if not isinstance(value, Mapping):
            return self.note(path, value, "a table")
        found = {name: self.value(inner, item, join(path, name), rules) for name, item in value.items()}
        return BAD if any(item is BAD for item in found.values()) else found

    def secret(self, value: Any, path: str) -> Any:
        """A secret by reference; a literal one is refused and not repeated."""
        match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            hint = 'Put the secret into an environment variable and name it here, as in "env:OPENAI_API_KEY".'
            return self.note(path, UNSHOWN, "a reference env:NAME", hint)
        name = match[1]
        if self.environment is None:
            return Secret(name, None)
        found = self.environment.get(name, "").strip()
        if not found:
            state = "an empty one" if name in self.environment else "none of that name"
            return self.note(path, Words(state), f"the environment variable {name}", f"export {name}=...")
        if not found.isascii() or not found.isprintable() or " " in found:
            return self.note(path, UNSHOWN, f"printable ASCII without spaces in the environment variable {name}")
        return Secret(name, found)


def join(path: str, key: str) -> str:
    """The path of a key; odd keys in quotes, as TOML writes them."""
    key = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
    return f"{path}.{key}" if path else key


def places(section: type, path: str = "") -> Iterator[tuple[str, str]]:
    """(key, where it is read) of every section below, for keys that stand in the wrong place."""
    kinds = hints(section)
    for it in fields(section):
        inner, where = without_none(kinds[it.name]), f"[{it.name}]"
        if is_list(inner):
            inner, where = get_args(inner)[0], f"[[{it.name}]]"
        elif get_origin(inner) is not None and get_origin(inner) is not Literal:
            inner, where = get_args(inner)[1], f"[{it.name}.NAME]"
        if is_dataclass(inner):
            yield from ((own.name, where) for own in fields(inner))
