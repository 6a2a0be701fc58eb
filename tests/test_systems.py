"""docs/systems.toml names only what exists, and docs/systems.md is what it generates."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.proofs.page import main, page
from polyroute.proofs.systems import SCALES, System, find_system, load_systems, proof_of, systems_file

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "systems.toml"
ROWS = load_systems(TABLE)
SIZES = {"request": 32, "retrieval-decoding-depth": 22, "expert": 20, "adapters-systems-fields": 35}


def defined(module: str, name: str) -> bool:
    """Whether a module of the package binds a name at its top level; read, not run, since it may need an extra."""
    stem = ROOT / "src" / Path(*module.split("."))
    file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    if not file.is_file():
        return False
    bound = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            bound.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    return name in bound


def test_all_systems_are_there_once():
    assert [row.id for row in ROWS] == list(range(1, 110))
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []
    assert Counter(row.scale for row in ROWS) == SIZES
    assert set(SIZES) == set(SCALES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.id))
def test_every_path_of_a_row_exists(row):
    for part in row.parts:
        module, _, name = part.partition(":")
        place = ROOT / "src" / "polyroute" / module
        assert place.with_suffix(".py").is_file() or place.is_dir(), f"part {part!r}"
        if name:
            assert defined("polyroute." + module.replace("/", "."), name), f"part {part!r}"
    for path in (row.recipe, row.proof):
        if path:
            assert re.fullmatch(r"polyroute(\.\w+)+:\w+", path), f"expected module:name, got {path!r}"
            assert defined(*path.split(":")), path
    if row.test:
        file, _, name = row.test.partition("::")
        assert (ROOT / file).is_file(), row.test
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row.test


def unsupported(row: System) -> list[str]:
    """What a row that claims something lacks."""
    wanted = ("parts", "recipe", "test", "proof", "figures")
    return [] if row.status == "planned" else [name for name in wanted if not getattr(row, name)]


def test_what_is_claimed_can_be_rerun():
    assert {row.id: found for row in ROWS if (found := unsupported(row))} == {}
    bare = System(1, "A", "request", (), "", "tests/a.py", "", "proven")
    assert unsupported(bare) == ["parts", "recipe", "proof", "figures"]


def test_the_page_is_what_the_table_generates():
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert text == page(ROWS), "run: python -m polyroute.proofs.page"
    assert main(["--check"]) == 0
    shown = re.findall(r"^\| (\d+) \| ", text, flags=re.MULTILINE)
    assert sorted(map(int, shown)) == list(range(1, 110))


def test_a_cell_cannot_break_the_table():
    (row,) = [row for row in ROWS if row.id == 16]
    fields = {name: getattr(row, name) for name in row.__slots__} | {"name": "a | b\nc", "figures": "+1 |\n2"}
    line = next(line for line in page([type(row)(**fields)]).splitlines() if line.startswith("| 16 |"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 7


def test_an_installation_has_the_table_too():
    inside = files("polyroute.data").joinpath("systems.toml")
    assert inside.read_text(encoding="utf-8") == TABLE.read_text(encoding="utf-8")
    assert systems_file().read_text(encoding="utf-8") == TABLE.read_text(encoding="utf-8")


def test_what_the_tests_install_runs_every_proof():
    """Whoever cloned the project and ran `make test` can run any proof: `test` brings every extra but the docs' own."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        found = set()
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement)[0]
            inner = re.match(r"polyroute\[(.+)\]", requirement)
            found |= {one for part in inner[1].split(",") for one in packages(part)} if inner else {name}
        return found

    assert set().union(*(packages(extra) for extra in extras if extra != "docs")) == packages("test")


def test_a_wrong_table_is_told(tmp_path):
    row = '[[system]]\nid = 1\nname = "A"\nscale = "request"\nparts = []\nrecipe = ""\ntest = ""\nproof = ""\n'
    for text, problem in [
        (row + 'status = "done"\n', r"system\[0\].status: expected one of planned"),
        (row, r"system\[0\]: expected also status"),
        (2 * (row + 'status = "planned"\n'), "each id once"),
        (row + 'status = "planned"\npaper = "x"\n', r"system\[0\].paper: expected one of"),
    ]:
        path = tmp_path / "systems.toml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            load_systems(path)


def test_a_system_is_found_by_id_or_name_and_a_planned_one_has_no_proof():
    assert find_system("16", ROWS).name == find_system("tryage", ROWS).name == "Tryage"
    with pytest.raises(UnknownNameError, match="Did you mean 'Tryage'"):
        find_system("Tryag", ROWS)
    without = next(row for row in ROWS if not row.proof)
    with pytest.raises(ConfigError, match="this system is planned"):
        proof_of(without)
