"""polyroute route: the decision of the gateway, without a gateway."""

from __future__ import annotations

import io
import json
import socket

import pytest

from polyroute.cli import main
from tests.cli.shipped import needs_cold_start

pytestmark = needs_cold_start

TWO = """
[journal]
path = "{folder}/journal.sqlite"
[[models]]
id = "small"
url = "http://127.0.0.1:9/v1"
api_key = "env:POLYROUTE_TEST_NO_SUCH_KEY"
price_in = 0.1
price_out = 0.2
context = 8192
ability = {{ general = 4.0 }}
[[models]]
id = "large"
url = "http://127.0.0.1:9/v1"
price_in = 10.0
price_out = 20.0
context = 64
ability = {{ general = 6.0 }}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A pool of two hosted models, in a place without any other configuration, and no way onto the network."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "two.toml"
    path.write_text(TWO.format(folder=tmp_path))

    def refuse(*_: object) -> None:
        raise AssertionError("a decision called somebody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return path


def document(capsys, *words: str) -> dict:
    assert main(["route", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_table_shows_every_candidate_and_why_the_winner_won(config, capsys):
    assert main(["route", "What is 2+2?", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("*")] == [line for line in lines if line.startswith("*  small")]
    assert any(line.split()[0] == "large" for line in lines if line)
    assert lines[-1].startswith("small: leads large by ")
    assert "difficulty" in out
    assert "math" in out
    assert not list(config.parent.glob("*.sqlite"))


def test_json_is_the_record_with_what_the_router_sees(config, capsys):
    found = document(capsys, "What is 2+2?", "--config", str(config))
    assert found["selected"] == "small"
    assert found["dry_run"]
    assert [c["id"] for c in found["candidates"]] == ["small", "large"]
    small, large = found["candidates"]
    assert 0 < small["mean"]["quality"] < large["mean"]["quality"] < 1
    assert large["mean"]["cost"] == pytest.approx(100 * small["mean"]["cost"])
    assert found["explained"]["skills"].keys() >= {"math", "code"}
    assert sum(found["explained"]["skills"].values()) == pytest.approx(1, abs=0.01)
    assert "embedding" not in found


def test_policy_and_trade_off_change_the_choice(config, capsys):
    text = "Prove that there are infinitely many primes of the form 4k+3."
    common = (text, "--config", str(config))
    assert document(capsys, *common, "--policy", "auto:best")["selected"] == "large"
    assert document(capsys, *common, "--policy", "auto:cheap")["selected"] == "small"
    assert document(capsys, *common, "--policy", "auto:cheap", "--trade-off", "0")["selected"] == "large"
    reference = (600 * 10.0 + 200 * 20.0) / 1e6
    assert document(capsys, *common, "--trade-off", "2")["weights"]["cost"] == pytest.approx(-2 / reference)


def test_what_rules_a_candidate_out_is_named(config, capsys):
    found = document(capsys, "word " * 300, "--config", str(config), "--policy", "auto:best")
    assert found["selected"] == "small"
    assert found["because"] == "only candidate allowed"
    assert {c["id"]: c.get("refused") for c in found["candidates"]} == {"small": None, "large": "fits_context"}
    assert main(["route", "word " * 300, "--config", str(config)]) == 0
    assert "fits_context" in capsys.readouterr().out


def test_the_text_may_come_from_stdin(config, capsys, monkeypatch):
    direct = document(capsys, "What is 2+2?", "--config", str(config))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What is 2+2?")))
    piped = document(capsys, "-", "--config", str(config))
    assert piped["candidates"] == direct["candidates"]


def test_without_a_file_the_embedded_pool_decides(config, capsys):
    found = document(capsys, "Hello")
    assert [c["id"] for c in found["candidates"]] == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "autoo"), "Unknown policy 'autoo'; expected one of: auto, auto:best, auto:cheap. "
                                "Did you mean 'auto'?"),
        (("--trade-off", "-1"), "--trade-off: expected a number of 0 or more, got -1.0."),
        (("--trade-off", "nan"), "--trade-off: expected a number of 0 or more, got nan."),
        (("--config", "nowhere.toml"), "nowhere.toml: expected a TOML file, got 'no such file'."),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(config, capsys, words, message):
    assert main(["route", "Hi", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_text_that_fits_nobody_names_the_rule(config, capsys):
    config.write_text(config.read_text().replace("context = 8192", "context = 64"))
    assert main(["route", "word " * 300, "--config", str(config)]) == 2
    assert "small by fits_context, large by fits_context" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "where"), [("-", "stdin"), ("hi \udcff", "text")])
def test_bytes_that_are_not_utf8_are_named(config, capsys, monkeypatch, text, where):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi \xff")))
    assert main(["route", text, "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert f"{where}: expected UTF-8 text, got 'byte 0xff at position 3'. Convert it" in told
    assert told.count("\n") == 1
