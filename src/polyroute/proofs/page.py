"""docs/systems.md, made from docs/systems.toml: `python -m polyroute.proofs.page` writes it, `--check` compares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from polyroute.errors import ConfigError
from polyroute.proofs.systems import SCALES, STATUSES, System, load_systems

HEAD = """\
---
hide:
  - toc
---

# Published systems

<!-- Generated from systems.toml by `python -m polyroute.proofs.page`; edit that file, not this one. -->

One row for each published system, sorted by the scale at which it routes. Parts are modules of `polyroute` it is made
of; the recipe puts them together.

- **planned**: nothing is claimed.
- **proven**: its mechanism beats the named baseline in its proof on three seeds or more, with an interval, and the
  control with the mechanism broken on purpose fails.
- **reproduced**: a published figure on public data, with the gap.

```sh
polyroute systems --status proven   # this table in the terminal
polyroute prove 16                  # run the proof of one row
```

The proofs of request routing read public outcome tables from the folder in `POLYROUTE_DATA`. Some need onnxruntime or
torch: `make test` installs all they need, as does `pip install -e '.[test]'`.
"""
TITLES = {
    "request": "Requests",
    "retrieval-decoding-depth": "Retrieval, decoding and depth",
    "expert": "Experts inside a network",
    "adapters-systems-fields": "Adapters, systems and fields",
}
COLUMNS = ("id", "system", "status", "parts", "recipe", "what the last proof said")


def page(rows: Sequence[System]) -> str:
    """The whole page. rows: by id."""
    sections = [section(scale, [row for row in rows if row.scale == scale]) for scale in SCALES]
    return "\n".join([HEAD, summary(rows), *sections])


def summary(rows: Sequence[System]) -> str:
    """How many systems of each scale stand where."""
    lines = [f"| scale | systems | {' | '.join(STATUSES)} |", "|---|" + "---:|" * (1 + len(STATUSES))]
    for scale in SCALES:
        there = [row for row in rows if row.scale == scale]
        lines.append(f"| {TITLES[scale]} | {len(there)} | {counted(there)} |")
    lines.append(f"| **all** | {len(rows)} | {counted(rows)} |")
    return "\n".join(lines) + "\n"


def counted(rows: Sequence[System]) -> str:
    return " | ".join(str(sum(row.status == status for row in rows)) for status in STATUSES)


def section(scale: str, rows: Sequence[System]) -> str:
    """One scale's systems as a table."""
    lines = [f"## {TITLES[scale]}", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: System) -> list[str]:
    """The cells of one row, in the order of COLUMNS."""
    parts, recipe = " ".join(code(part) for part in row.parts), code(row.recipe.removeprefix("polyroute."))
    return [str(row.id), plain(row.name), row.status, parts, recipe, plain(row.figures)]


def code(name: str) -> str:
    return f"`{plain(name)}`" if name else ""


def plain(text: str) -> str:
    """A text that cannot end its cell or its line."""
    return " ".join(text.replace("|", "\\|").split())


def target() -> Path:
    """docs/systems.md of this checkout. Raises: ConfigError in an installation, which has no docs."""
    docs = Path(__file__).resolve().parents[3] / "docs"
    if not (docs / "systems.toml").is_file():
        raise ConfigError("docs", got=str(docs), expected="a checkout with docs/systems.toml")
    return docs / "systems.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or with --check say whether it is the one that would be written. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m polyroute.proofs.page",
        description="Write docs/systems.md from docs/systems.toml.",
        epilog="example: python -m polyroute.proofs.page --check",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is out of date")
    args = parser.parse_args(argv)
    path = target()
    text = page(load_systems(path.with_name("systems.toml")))
    current = path.is_file() and path.read_text(encoding="utf-8") == text
    if args.check:
        print(f"{path}: " + ("up to date" if current else "out of date; run: python -m polyroute.proofs.page"))
        return 0 if current else 1
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
