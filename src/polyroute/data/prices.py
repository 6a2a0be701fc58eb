"""Prices of models from a `models.json` that lies beside or above a table of outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyroute.errors import OutcomesError
from polyroute.types import Candidate, Profile

STATED = ("context", "ability_std", "tokens_per_s", "first_token_s", "region")  # fields of a profile taken as they are


def models_of(path: Path) -> list[Candidate]:
    """The candidates a models.json lists, each once, with what it says of them. Raises: OutcomesError for none."""
    found: dict[str, Candidate] = {}
    for name, _, known in read_models(path):
        found.setdefault(name, Candidate(name, profile=known))
    if not found:
        raise OutcomesError(f"{path}: expected at least one model in the list `models`, got none.")
    return list(found.values())


def pool_of(names: Sequence[str], table: Path) -> list[Candidate]:
    """Candidates in the order given, with prices from `models.json` where it lists them and zero elsewhere.

    The file is looked for in the table's folder and in the one above. An entry whose `table` is the table's own
    name (without .parquet) wins over an entry for the same model in another table, since prices differ by source.
    """
    for folder in (table.parent, table.parent.parent):
        if (folder / "models.json").is_file():
            listed = read_models(folder / "models.json")
            break
    else:
        listed = []
    pool = []
    for name in names:
        entries = [entry for entry in listed if entry[0] == name]
        own = [entry for entry in entries if entry[1] == table.stem]
        pool.append(Candidate(name, profile=(own or entries)[0][2] if entries else Profile()))
    return pool


def read_models(path: Path) -> list[tuple[str, str, Profile]]:
    """(model, table, profile) of every entry. Raises: OutcomesError naming the file and the entry."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise OutcomesError(f"{path}: expected a readable JSON file, got: {problem}.") from problem
    entries = content.get("models") if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise OutcomesError(f"{path}: expected an object with a list `models`, got none.")
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise OutcomesError(f"{path}: models[{i}]: expected an object with a `name`, got {entry!r:.60}. Name it.")
    note = content.get("note")
    rate = note.get("cny_per_usd") if isinstance(note, Mapping) else None
    return [(entry["name"], str(entry.get("table", "")), profile(path, entry, rate)) for entry in entries]


def profile(path: Path, entry: Mapping[str, Any], cny_per_usd: float | None) -> Profile:
    """One entry: prices in USD per million tokens (yuan at the rate the file states), abilities, speed, context."""
    rate = 1.0
    if "price_in_usd" not in entry and entry.get("currency", "USD") != "USD":
        if entry["currency"] != "CNY" or not cny_per_usd:
            raise OutcomesError(
                f"{path}: model {entry.get('name')!r}: expected a price in USD, or in CNY with note.cny_per_usd, "
                f"got {entry['currency']}. Add price_in_usd and price_out_usd."
            )
        rate = cny_per_usd
    prices = []
    for key in ("price_in", "price_out"):
        value = entry.get(f"{key}_usd", entry.get(key, 0.0)) or 0.0
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise OutcomesError(f"{path}: model {entry.get('name')!r}: expected {key} of 0 or more, got {value!r}.")
        prices.append(value / rate)
    ability = entry.get("ability") or {}
    if not isinstance(ability, Mapping) or not all(isinstance(logit, (int, float)) for logit in ability.values()):
        raise OutcomesError(
            f"{path}: model {entry.get('name')!r}: expected ability as an object of skill: logit, got {ability!r:.60}."
        )
    known = {key: entry[key] for key in STATED if entry.get(key) is not None}
    return Profile(price_in=prices[0], price_out=prices[1], ability=dict(ability), **known)
