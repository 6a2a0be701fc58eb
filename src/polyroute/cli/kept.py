"""Records of earlier runs, and what tells whether they still hold: the source of the code that made them."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyroute.offline.benchmark import Record


def code_of(modules: set[str]) -> str:
    """A hash of the source of some modules and of every module of ours they import, and those import."""
    seen: dict[str, bytes] = {}
    left = sorted(modules)
    while left:
        module = left.pop()
        spec = find_spec(module) if module not in seen else None
        if spec is None or spec.origin is None:
            continue
        seen[module] = Path(spec.origin).read_bytes()
        left += [name for name in imported(seen[module]) if name.startswith("polyroute.")]
    digest = hashlib.sha256()
    for module in sorted(seen):
        digest.update(module.encode() + b"\0" + seen[module])
    return digest.hexdigest()


def imported(source: bytes) -> Iterator[str]:
    """The modules a file imports from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def read(path: Path, mark: str) -> Record | None:
    """A record that still holds, or None."""
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("mark") == mark else None


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The file appears whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(record), encoding="utf-8")
    unfinished.replace(path)
