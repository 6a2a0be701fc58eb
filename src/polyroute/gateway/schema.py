"""Sections made with `strict.option`, told to editors as JSON Schema and to people as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from polyroute.gateway.strict import REFERENCE, Secret, hints, is_list, rules_of, without_none


def json_schema(section: type, title: str) -> dict[str, object]:
    """JSON Schema (2020-12) of a document; every table is closed."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **table_schema(section, {})}


def table_schema(section: type, each: Mapping[str, Any]) -> dict[str, object]:
    """One section."""
    kinds, properties, required = hints(section), {}, []
    for it in fields(section):
        rules = rules_of(it, each)
        if not rules.get("about"):
            continue
        about = {"description": described(rules)}
        default = plain_default(it)
        properties[it.name] = {
            **value_schema(kinds[it.name], rules),
            **about,
            **({"default": default} if default is not None else {}),
        }
        if it.default is MISSING and it.default_factory is MISSING:
            required.append(it.name)
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**closed, "required": required} if required else closed


def value_schema(kind: Any, rules: Mapping[str, Any]) -> dict[str, object]:
    """One value, by the type of its field."""
    kind = without_none(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return table_schema(kind, rules.get("each", {}))
    if kind is Secret:
        return {"type": "string", "pattern": f"^{REFERENCE.pattern}$"}
    if is_list(kind):
        unique = {"uniqueItems": True} if get_origin(kind) is frozenset else {}
        return {"type": "array", "items": value_schema(get_args(kind)[0], rules), **unique}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is not None:
        return {"type": "object", "additionalProperties": value_schema(get_args(kind)[1], rules)}
    named = {str: "string", Path: "string", bool: "boolean", int: "integer", float: "number"}[kind]
    bounds = {"above": "exclusiveMinimum", "least": "minimum", "most": "maximum"}
    limits = {word: rules[name] for name, word in bounds.items() if rules.get(name) is not None}
    pattern = {"pattern": f"^{rules['pattern']}$"} if rules.get("pattern") else {}
    return {"type": named, **(limits if named in ("integer", "number") else pattern)}


def described(rules: Mapping[str, Any]) -> str:
    """What a key means, with its unit."""
    about, unit = rules["about"], rules.get("unit")
    return f"{about} Unit: {unit}." if unit and unit not in about else str(about)


def plain_default(it: Any) -> object:
    """A default as JSON holds it; None where there is none, or where it is a section of its own."""
    if it.default is MISSING or it.default is None:
        return None
    if isinstance(it.default, (tuple, frozenset)):
        return sorted(it.default)
    return str(it.default) if isinstance(it.default, Path) else it.default


class Key(NamedTuple):
    """One key of the file, for a table in the documentation."""

    section: str
    name: str
    kind: str
    default: object
    about: str


def keys(section: type, where: str = "", each: Mapping[str, Any] | None = None) -> Iterator[Key]:
    """Every key of every section, in the order they are declared."""
    kinds = hints(section)
    for it in fields(section):
        rules = rules_of(it, each or {})
        if not rules.get("about"):
            continue
        kind = without_none(kinds[it.name])
        inner, place = kind, f"[{it.name}]"
        if is_list(kind):
            inner, place = get_args(kind)[0], f"[[{it.name}]]"
        elif get_origin(kind) not in (None, Literal):
            inner, place = get_args(kind)[1], f"[{it.name}.NAME]"
        if is_dataclass(inner) and isinstance(inner, type):
            yield from keys(inner, place, rules.get("each"))
        else:
            yield Key(where, it.name, kind_name(kind), plain_default(it), described(rules))


def kind_name(kind: Any) -> str:
    """The type of a value, in words."""
    kind = without_none(kind)
    if kind is Secret:
        return "env:NAME"
    if get_origin(kind) is Literal:
        return " or ".join(f'"{word}"' for word in get_args(kind))
    if is_list(kind):
        return f"list of {kind_name(get_args(kind)[0])}"
    if get_origin(kind) is not None:
        return f"table of {kind_name(get_args(kind)[1])}"
    return {str: "text", Path: "path", bool: "true or false", int: "whole number", float: "number"}[kind]
