"""docs/systems.toml: the table of published systems, read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.proofs.proof import Prove

STATUSES = ("planned", "proven", "reproduced")
SCALES = ("request", "retrieval-decoding-depth", "expert", "adapters-systems-fields")


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table."""

    id: int
    name: str
    scale: str
    parts: tuple[str, ...]
    recipe: str  # module:function, or empty
    test: str  # path from the repository's root, or empty
    proof: str  # module:function, or empty
    status: str
    figures: str = ""  # what the last run said


def systems_file() -> Path:
    """The table: beside the sources in a checkout, inside the package in an installation."""
    beside = Path(__file__).resolve().parents[3] / "docs" / "systems.toml"
    return beside if beside.is_file() else Path(str(files("polyroute.data").joinpath("systems.toml")))


def load_systems(path: Path | None = None) -> list[System]:
    """All rows by id. Raises ConfigError naming the row at fault."""
    text = (path or systems_file()).read_text(encoding="utf-8")
    rows = [read_row(row, i) for i, row in enumerate(tomllib.loads(text).get("system", []))]
    ids = [row.id for row in rows]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ConfigError("system.id", got=twice, expected="each id once")
    return sorted(rows, key=lambda row: row.id)


def read_row(row: dict[str, Any], i: int) -> System:
    where = f"system[{i}]"
    names = {f.name for f in fields(System)}
    for key in row:
        if key not in names:
            raise ConfigError(f"{where}.{key}", got=row[key], expected=f"one of {', '.join(sorted(names))}")
    missing = sorted(names - set(row) - {"figures"})
    if missing:
        raise ConfigError(where, got=sorted(row), expected=f"also {', '.join(missing)}")
    if row["status"] not in STATUSES:
        raise ConfigError(f"{where}.status", got=row["status"], expected=f"one of {', '.join(STATUSES)}")
    if row["scale"] not in SCALES:
        raise ConfigError(f"{where}.scale", got=row["scale"], expected=f"one of {', '.join(SCALES)}")
    return System(**{**row, "parts": tuple(row["parts"])})


def find_system(wanted: str, rows: Sequence[System]) -> System:
    """A row by id or by name, any case. Raises UnknownNameError with the nearest name."""
    for row in rows:
        if wanted == str(row.id) or wanted.lower() == row.name.lower():
            return row
    raise UnknownNameError("system", wanted, [row.name for row in rows])


def proof_of(system: System) -> Prove:
    """The function that proves a system. Raises ConfigError where none is written yet."""
    if not system.proof:
        raise ConfigError(f"system {system.id}.proof", got="", expected="a proof; this system is planned")
    module, _, name = system.proof.partition(":")
    found: Prove = getattr(import_module(module), name)
    return found
