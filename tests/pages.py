"""What test_docs.py looks for in a page: blocks of code, spans, links, and whether what they name exists."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from polyroute.cli import COMMANDS, parser
from polyroute.errors import ConfigError
from polyroute.gateway.app import PREFIXES, ROUTES
from polyroute.gateway.config import Config, ConfigErrors, load_config
from polyroute.gateway.schema import keys
from polyroute.gateway.telemetry import Telemetry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "polyroute"
FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PLACEHOLDERS = {"COMMAND", "ID", "NAME"}
SHAPES = {"n", "m", "k", "d", "q"}
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


class Block(NamedTuple):
    language: str
    code: str


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page."""
    found = [Block(*match.groups()) for match in FENCE.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def spans(text: str) -> list[str]:
    """What stands between single backticks outside blocks; a line break is a space."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]


# ---- links


def slug(heading: str) -> str:
    """The anchor of a heading, as mkdocs makes it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Relative links of a page that lead nowhere. A page of the site may not lead out of it."""
    for target in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{target}: no such file"
        elif page.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            yield f"{target}: outside the site"
        elif anchor and anchor not in map(slug, HEADING.findall(FENCE.sub("", file.read_text(encoding="utf-8")))):
            yield f"{target}: no such heading"


# ---- commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the sh blocks; the lines of one command are joined, comments and pipes cut."""
    for block in blocks(text, "sh"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for stop in ("|", "<", ">", "&&"):
                words = words[: words.index(stop)] if stop in words else words
            if words:
                yield words


def wrong_commands(text: str) -> Iterator[str]:
    """Commands of a page that their own parser does not take, and targets the Makefile does not have."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(text):
        if words[0] == "make":
            yield from (f"make {word}" for word in words[1:] if "=" not in word and word not in targets)
        elif words[0].rsplit("/", 1)[-1] == "polyroute":
            try:
                with contextlib.redirect_stderr(io.StringIO()) as said:
                    parser(words[1]).parse_args(words[1:])
            except SystemExit:
                yield f"{' '.join(words)}: {said.getvalue().strip().splitlines()[-1]}"
    for span in spans(text):
        if span.startswith("make "):
            yield from (span for word in span.split()[1:] if "=" not in word and word not in targets)
        elif span.startswith("polyroute "):
            words = span.split()
            if words[1] not in COMMANDS and words[1] not in PLACEHOLDERS:
                yield f"{span}: no such command"
            yield from (f"{span}: no {w}" for w in words[2:] if w.startswith("--") and w not in options(words[1]))
        elif re.match(r"--[a-z]", span) and span.split()[0] not in every_option():
            yield f"{span}: no command has it"


@cache
def help_of(*words: str) -> str:
    """What a command prints with --help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parser(words[0]).parse_args([*words, "--help"])
    return said.getvalue()


@cache
def options(command: str) -> frozenset[str]:
    """Every option of a command and of its actions."""
    text = help_of(command)
    actions = re.findall(r"^    (\w+) ", text.partition("ACTION")[2], re.MULTILINE)
    return frozenset(re.findall(r"--[a-z][a-z-]*", " ".join([text, *(help_of(command, name) for name in actions)])))


def every_option() -> frozenset[str]:
    return frozenset().union(*(options(command) for command in COMMANDS)) | {"--help", "--version", "--check"}


# ---- configuration


def wrong_keys(text: str, folder: Path) -> Iterator[str]:
    """Keys in toml blocks and in spans like `server.port` that no configuration has."""
    for i, block in enumerate(blocks(text, "toml")):
        path = folder / f"block-{i}.toml"
        path.write_text(block.code, encoding="utf-8")
        try:
            load_config(path, read_environment=False)
        except ConfigError as error:
            problems = error.errors if isinstance(error, ConfigErrors) else [error]
            yield from (str(problem) for problem in problems if "a file that exists" not in problem.expected)
    known = {(key.section.strip("[]").split(".")[0], key.name) for key in keys(Config)}
    sections = {section for section, _ in known}
    for span in spans(text):
        found = re.fullmatch(r"(\w+)(?:\.NAME|\[\d\])?\.([a-z_]+)", span)
        if found and found[1] in sections and found[2] not in ("npz", "sqlite", "toml", "md", "py"):
            if found.groups() not in known:
                yield f"{span}: no such key"
        elif (found := re.fullmatch(r"\[+(\w+)(?:\.\w+)?\]+", span)) and found[1] not in sections | EXTRAS | SHAPES:
            yield f"{span}: no such section"


# ---- the wire and the package


def unknown_names(text: str) -> Iterator[str]:
    """Headers, endpoints, metrics, modules and files that a page names and that do not exist."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "gateway").rglob("*.py")))
    metrics = set(re.findall(r"^# TYPE (polyroute_\w+)", Telemetry(models=["m"]).render().decode(), re.MULTILINE))
    for name in set(re.findall(r"x-polyroute-[a-z-]*[a-z]", text)):
        if f'"{name}"' not in source and f'b"{name}"' not in source:
            yield f"{name}: no such header"
    for path in set(re.findall(r"(?<![\w./])/(?:polyroute/v1|v1)/[a-z/]+(?:\{id\})?", text)):
        if path not in ROUTES and path.removesuffix("{id}") not in PREFIXES and path.rstrip("/") not in ROUTES:
            yield f"{path}: no such endpoint"
    for name in set(re.findall(r"\bpolyroute_(?!v1)[a-z_]*[a-z]", text)):
        if name not in metrics and name.removesuffix("_bucket") not in metrics:
            yield f"{name}: no such metric"
    for name in set(re.findall(r"\bpolyroute(?:\.[a-zA-Z_]\w*)+", text)):
        if not is_module(name.split(".")[1:]):
            yield f"{name}: no such module"
    for span in spans(text):
        if re.fullmatch(r"(?:[\w-]+/)+[\w.-]+\.(?:py|toml|md)", span):
            places = (ROOT / span, PACKAGE / span)
            if not any(place.exists() for place in places) and not span.startswith(("outcomes/", ".polyroute/")):
                yield f"{span}: no such file"


def is_module(parts: list[str]) -> bool:
    """A module of the package, a name in one, or a file name like polyroute.toml."""
    if parts[-1] in ("toml", "json", "npz"):
        return True
    for depth in range(len(parts), -1, -1):
        place = PACKAGE.joinpath(*parts[:depth])
        file = place.with_suffix(".py") if depth and place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            rest = parts[depth:]
            return not rest or re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")) is not None
    return False
