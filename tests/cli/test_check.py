from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from polyroute.artefact import save
from polyroute.cli import check, main
from polyroute.errors import ArtefactError, ConfigError
from polyroute.gateway.config import schema
from polyroute.gateway.example import example
from polyroute.routers.constant import Constant

MIXED = """
[server]
client_keys = ["env:TEAM_KEY"]
[[models]]
id = "small"
backend = "local"
file = "qwen2.5-coder-0.5b"
[[models]]
id = "large"
url = "https://api.example.com/v1"
api_key = "env:LARGE_KEY"
price_in = 2.5
price_out = 10
offers = ["tools"]
[policies.quick]
weights = { quality = 1, latency = -0.1 }
explore = "epsilon"
models = ["small"]
needs = ["json"]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    check.add(parser.add_subparsers())

    def command(*words: str) -> int:
        args = parser.parse_args(["check", *words])
        return args.run(args)

    return command


def test_without_a_file_it_shows_the_embedded_defaults(run, capsys):
    assert run() == 0
    said = capsys.readouterr().out
    assert "configuration  embedded defaults (no polyroute.toml here)" in said
    assert "listens        http://127.0.0.1:8080, no client keys" in said
    assert "qwen2.5-coder-0.5b  local" in said
    assert "auto:cheap  trade_off 3 " in said
    assert said.endswith("\nok\n")


def test_it_shows_each_guard_and_what_it_does(run, capsys):
    assert run() == 0
    assert "guards         none" in capsys.readouterr().out
    Path("polyroute.toml").write_text(
        '[guards.pii]\naction = "refuse"\n\n'
        '[guards.language]\nlanguages = ["en"]\naction = "restrict"\nmodels = ["qwen2.5-coder-1.5b"]\n',
        encoding="utf-8",
    )
    assert run() == 0
    assert "guards         pii refuses, language restricts to qwen2.5-coder-1.5b" in capsys.readouterr().out


def test_it_shows_what_takes_effect(run, capsys, monkeypatch, tmp_path):
    Path("polyroute.toml").write_text(MIXED, encoding="utf-8")
    monkeypatch.setenv("TEAM_KEY", "secret-1")
    monkeypatch.setenv("LARGE_KEY", "secret-2")
    assert run() == 0
    said = capsys.readouterr().out
    assert "configuration  polyroute.toml" in said
    assert "1 client key," in said
    assert f"journal        {tmp_path}/.polyroute/journal.sqlite, stores features" in said
    (small,) = [line.split() for line in said.splitlines() if line.startswith("small")]
    assert small[1:3] == ["local", f"{float(small[2]):.4g}"], "the price is the catalogue's"
    assert small[4:] == ["4096", "json", "qwen2.5-coder-0.5b"]
    (large,) = [line.split() for line in said.splitlines() if line.startswith("large")]
    assert large[1:] == ["openai", "2.5", "10", "not", "known", "tools", "https://api.example.com/v1", "(large)"]
    assert "quick       quality 1, latency -0.1  epsilon 0.05  small, needs json" in said
    assert "secret" not in said


def test_a_missing_secret_is_an_error_unless_the_environment_is_left_out(run, capsys, monkeypatch):
    monkeypatch.delenv("TEAM_KEY", raising=False)
    monkeypatch.delenv("LARGE_KEY", raising=False)
    Path("other.toml").write_text(MIXED, encoding="utf-8")
    with pytest.raises(ConfigError, match="environment variable TEAM_KEY"):
        run("other.toml")
    assert run("other.toml", "--no-env") == 0


def test_warnings_fail_where_they_are_to(run, capsys):
    Path("polyroute.toml").write_text('[server]\nhost = "0.0.0.0"\n', encoding="utf-8")
    assert run() == 0
    said = capsys.readouterr().out
    assert "warning: server.host 0.0.0.0 is reachable by others" in said
    assert said.endswith("ok, with 1 warning\n")
    assert run("--strict") == 1


def test_a_wrong_file_raises_what_main_prints(run):
    Path("polyroute.toml").write_text("[server]\nporrt = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"server.porrt: .* Did you mean 'port'\?"):
        run()


def test_the_schema_is_printed_or_written(run, capsys):
    assert run("--schema") == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert run("--schema", "s.json") == 0
    assert json.loads(Path("s.json").read_text(encoding="utf-8")) == schema()


def test_the_example_is_written_with_its_schema_and_never_over_a_file(run, capsys):
    assert run("--write-example", "mine.toml") == 0
    assert Path("mine.toml").read_text(encoding="utf-8") == example()
    assert json.loads(Path("polyroute.schema.json").read_text(encoding="utf-8")) == schema()
    assert run("mine.toml") == 0
    assert capsys.readouterr().out.endswith("ok\n")
    Path("mine.toml").write_text("precious", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.toml: expected no file of that name"):
        run("--write-example", "mine.toml")
    assert Path("mine.toml").read_text(encoding="utf-8") == "precious"


def test_a_place_that_cannot_be_written_is_named(run):
    with pytest.raises(ConfigError, match=r"no/such/folder.toml: expected a place to write to"):
        run("--write-example", "no/such/folder.toml")


def test_help_has_an_example(run, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert "polyroute check staging.toml --no-env" in capsys.readouterr().out


def test_a_router_that_serve_would_refuse_fails_the_check(run):
    Path("c.toml").write_text('[router]\nartefact = "r.npz"\n', encoding="utf-8")
    Path("r.npz").write_text("no router", encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"r.npz: expected a file written by polyroute fit"):
        run("c.toml")
    save(Constant("quality", 0.5, 0.1), "r.npz", features="recorded-minilm", pool=[])
    with pytest.raises(ConfigError, match=r"router.artefact: expected one whose features can be made from live text"):
        run("c.toml")


def test_a_port_nobody_can_listen_on_is_refused(capsys):
    for port in ("-1", "65536"):
        with pytest.raises(SystemExit):
            main(["serve", "--port", port])
        assert f"--port: expected a whole number from 0 to 65535, got '{port}'" in capsys.readouterr().err
