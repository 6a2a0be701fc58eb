"""The documentation is true: its code runs, its links lead somewhere, and what it names exists."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from pathlib import Path

import pytest

from polyroute.cli import COMMANDS
from polyroute.gateway.scripted import chat_body, chat_events, reply, stream
from tests.gateway.live import serving
from tests.pages import (
    DOCS,
    PACKAGE,
    ROOT,
    blocks,
    broken_links,
    commands,
    help_of,
    options,
    slug,
    unknown_names,
    wrong_commands,
    wrong_keys,
)

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
NEED_DATA: set[str] = set()  # pages whose python reads tables that the repository does not hold
SERVER = "http://127.0.0.1:8080"
DECISION = "dec_0123456789abcdef01234567"  # stands in the pages for a real one


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


GENERATED = DOCS / "systems.md"  # tests/test_systems.py has it
every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def with_code(language: str, needle: str) -> list[Path]:
    return [page for page in PAGES if any(needle in block.code for block in blocks(text_of(page), language))]


# ---- code


@pytest.mark.parametrize(
    "page", [page for page in with_code("python", "") if page_id(page) not in NEED_DATA], ids=page_id
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """Block after block, in one name space, as a reader would. Those that ask a gateway have a test of their own."""
    monkeypatch.chdir(tmp_path)
    found = [block for block in blocks(text_of(page), "python") if SERVER not in block.code]
    space: dict[str, object] = {"__name__": "page"}
    for block in found:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.code, page_id(page), "exec"), space)


def test_the_readme_shows_a_router_choosing_by_the_query():
    code = blocks(text_of(ROOT / "README.md"), "python")[0].code
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "README.md", "exec"), {})
    assert [line.split(" | ")[0] for line in said.getvalue().splitlines()] == ["small", "large"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with two scripted models, and a decision that was made there."""
    pytest.importorskip("wordllama", reason="needs the default featuriser: pip install 'polyroute[embed]'")

    def as_asked(seen):
        return stream(chat_events()) if json.loads(seen.body).get("stream") else reply(chat_body())

    with serving(tmp_path_factory.mktemp("docs"), {"small": as_asked, "large": as_asked}) as live:
        answer, _ = live.chat("auto")
        yield live, answer.getheader("x-polyroute-decision-id")


@pytest.mark.parametrize("page", with_code("python", SERVER), ids=page_id)
def test_the_client_code_of_a_page_is_answered(page, gateway):
    pytest.importorskip("openai")
    live, _ = gateway
    for block in blocks(text_of(page), "python"):
        if SERVER in block.code:
            with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # the snippets leave closing to the interpreter
                exec(compile(block.code.replace(SERVER, live.url), page_id(page), "exec"), {"__name__": "page"})
            assert said.getvalue().strip()


@pytest.mark.parametrize("page", with_code("sh", "curl"), ids=page_id)
def test_the_curl_lines_of_a_page_are_answered(page, gateway):
    live, decision = gateway
    lines = [words for words in commands(text_of(page)) if words[0] == "curl"]
    assert lines
    for words in lines:
        url = next(word for word in words if word.startswith(SERVER))
        body = words[words.index("-d") + 1].replace(DECISION, decision) if "-d" in words else None
        path = url.removeprefix(SERVER).replace(DECISION, decision)
        answer, content = live.call("GET" if body is None else "POST", path, body and body.encode())
        assert answer.status < 300, (words, content)
        assert json.loads(content)


@every_page
def test_a_page_says_nothing_twice(page):
    """A section or a line on a part that stands there again is left over from a merge."""
    lines = [line for line in text_of(page).splitlines() if line.startswith(("## ", "| `"))]
    assert sorted({line for line in lines if lines.count(line) > 1}) == []


@every_page
def test_the_commands_of_a_page_exist(page):
    assert list(wrong_commands(text_of(page))) == []


@every_page
def test_the_keys_of_a_page_exist(page, tmp_path):
    assert list(wrong_keys(text_of(page), tmp_path)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=page_id)
def test_the_names_on_a_page_exist(page):
    assert list(unknown_names(text_of(page))) == []


def test_wrong_names_are_found(tmp_path):
    page = """
`polyroute serv`, `polyroute check --stict`, `--pathfinder`, `make sense`, `server.prot`, `[rooter]`, `routers/gnn.py`
x-polyroute-mood, /polyroute/v1/feedbag, polyroute_moods_total, polyroute.routers.gnn, polyroute.decide.undecide
```sh
polyroute fit table.parquet   # no output
polyroute journal prune
make love
```
```toml
[server]
prot = 1
```
"""
    assert len(list(wrong_commands(page))) == 7
    assert len(list(wrong_keys(page, tmp_path))) == 3
    assert len(list(unknown_names(page))) == 6
    sound = "`polyroute check --strict` `make test` `server.port` x-polyroute-reason polyroute.decide.weigh /v1/models"
    assert not [*wrong_commands(sound), *wrong_keys(sound, tmp_path), *unknown_names(sound)]


# ---- pages


def test_every_page_is_in_the_navigation_once():
    named = re.findall(r":\s+([\w-]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md"))


@every_page
def test_the_links_of_a_page_lead_somewhere(page):
    assert list(broken_links(page, text_of(page))) == []


def test_broken_links_are_found():
    wrong = "[a](nowhere.md) [b](concepts.md#not-there) [c](../README.md) [d](#not-here)"
    assert len(list(broken_links(DOCS / "index.md", wrong))) == 4
    right = "[a](concepts.md#four-rules) [b](https://example.org) [c](systems.md)"
    assert list(broken_links(DOCS / "index.md", right)) == []
    assert slug("### `[policies.NAME]`".lstrip("# ")) == "policiesname"


def test_nothing_is_loaded_from_elsewhere():
    site = text_of(ROOT / "mkdocs.yml")
    assert "font: false" in site
    assert "extra_javascript" not in site
    assert "extra_css" not in site
    for page in PAGES:
        assert not re.search(r"<(?:script|img|iframe|link)\b|!\[[^\]]*\]\(https?:", text_of(page)), page


# ---- the README


def test_the_readme_names_every_folder_and_every_file_beside_them():
    readme = text_of(ROOT / "README.md")
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `src/polyroute/(\w+)/`", readme, re.MULTILINE)) == packages
    assert {f"`{path.name}`" for path in PACKAGE.glob("[!_]*.py")} <= set(re.findall(r"`\w+\.py`", readme))
    for folder in re.findall(r"^\| `([\w/]+)/` \|", readme, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    for folder in ("tests", "benches", "examples", "docs"):
        assert f"| `{folder}/` |" in readme


def test_the_readme_leads_with_the_two_commands():
    readme = text_of(ROOT / "README.md")
    assert [words for words in commands(readme) if words[0] == "make"][:2] == [["make", "serve"], ["make", "test"]]


# ---- the commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_ends_with_an_example(command):
    text = help_of(command)
    assert text.startswith(f"usage: polyroute {command}")
    head, found, examples = re.split(r"^(examples?:)", text, maxsplit=1, flags=re.MULTILINE)
    assert found
    assert "-h, --help" in head
    assert f"polyroute {command}" in examples


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_the_help_are_right(command):
    examples = re.findall(r"(?:^  |^example: )(polyroute \S.*?)(?:  .*)?$", help_of(command), re.MULTILINE)
    assert examples
    page = "```sh\n" + "\n".join(examples) + "\n```\n"
    assert list(wrong_commands(page)) == []
    assert options(command)


@pytest.mark.parametrize("command", ["models", "journal"])
def test_every_action_of_a_command_has_help_with_an_example(command):
    actions = re.findall(r"^    (\w+) ", help_of(command).partition("ACTION")[2], re.MULTILINE)
    assert len(actions) >= 5
    for action in actions:
        examples = re.findall(rf"^example: (polyroute {command} {action} .*|polyroute {command} {action})$",
                              help_of(command, action), re.MULTILINE)  # fmt: skip
        assert examples
        assert list(wrong_commands("```sh\n" + "\n".join(examples) + "\n```\n")) == []
