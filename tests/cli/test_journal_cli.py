from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from polyroute.cli import journal as command
from polyroute.errors import ConfigError, JournalError
from polyroute.gateway.journal import Journal
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord, Weighed

DAY = 86_400.0
NOW = time.time()


def name(i: int) -> str:
    return f"dec_{i:024x}"


def fill(path: Path, count: int, *, prompt: str | None = None) -> None:
    """Decision i was made i days ago, at a cost of 1 cent where the dearest costs 4; number 1 was reported on."""
    journal = Journal(path, store="prompts")
    for i in range(count):
        journal.decision(
            DecisionRecord(
                id=name(i), request_id=f"req_{i}", time=NOW - i * DAY, endpoint="chat.completions", requested="auto",
                policy="auto", selected="small", propensity=0.9, because="leads large by 0.1 utility", prompt=prompt,
                candidates=[
                    Weighed(id="small", mean={"quality": 0.5, "cost": 0.01}, std={"quality": 0.125}, utility=0.4),
                    Weighed(id="large", mean={"quality": 0.9, "cost": 0.04}, utility=0.3, refused="fits_context"),
                ],
                weights={"quality": 1.0, "cost": -10.0}, embedding=np.full(3, i, dtype=np.float16).tobytes(),
            )
        )  # fmt: skip
        journal.outcome(
            OutcomeRecord(
                decision_id=name(i), time=NOW - i * DAY + 1, status=200, state="ok", selected="small", latency_s=0.25,
                prompt_tokens=100, completion_tokens=10, cost_usd=0.01, dearest_usd=0.04,
            )
        )  # fmt: skip
    if count > 1:
        journal.feedback(FeedbackRecord(decision_id=name(1), time=NOW, metrics={"quality": 0.5}, source="key-1"))
        journal.feedback(FeedbackRecord(decision_id=name(1), time=NOW + 1, metrics={"quality": 1.0}, comment="good"))
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j.sqlite"


@pytest.fixture
def run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())

    def call(*words: str, there: Path | None = path) -> int:
        args = parser.parse_args(["journal", *words, *(["--journal", str(there)] if there else [])])
        return args.run(args)

    return call


def test_stats_tell_spend_shares_and_quality(run, path, capsys):
    fill(path, 8)
    assert run("stats") == 0
    said = capsys.readouterr().out
    assert "8 decisions, 8 outcomes, 2 reports" in said
    assert "requests   8  ok 8" in said
    assert "spend      0.080000 USD; always the dearest 0.320000 USD: 75.0% saved" in said
    assert "quality    0.750 over 2 reports" in said
    assert [line.split() for line in said.splitlines() if line.startswith("small")] == [
        ["small", "8", "100.0%", "0.080000", "800", "80", "0.750"]
    ]
    assert run("stats", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decisions"] == 8
    assert found["totals"]["models"]["small"]["requests"] == 8


def test_stats_of_an_empty_journal_do_not_divide_by_it(run, path, capsys):
    fill(path, 0)
    assert run("stats") == 0
    assert "0 decisions" in capsys.readouterr().out


def test_tail_shows_the_last_ones_newest_last(run, path, capsys):
    fill(path, 5)
    assert run("tail", "-n", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [name(3), name(4)]
    assert "auto -> small" in lines[0]
    assert "200 ok" in lines[0]
    assert "0.010000 USD" in lines[0]
    assert run("tail", "-n", "1", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["decision"]["id"] == name(4)
    assert row["outcome"]["cost_usd"] == 0.01


def test_tail_follows_new_outcomes_until_interrupted(run, path, capsys, monkeypatch):
    fill(path, 2)
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 1:
            journal = Journal(path)
            journal.outcome(
                OutcomeRecord(decision_id=name(0), time=NOW, status=499, state="cancelled", selected="small")
            )
            journal.close()
        if waits == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", wait)
    assert run("tail", "-n", "0", "--follow") == 130
    (line,) = capsys.readouterr().out.splitlines()
    assert name(0) in line
    assert "499 cancelled" in line


def test_show_explains_a_decision(run, path, capsys):
    fill(path, 2, prompt="say hello")
    assert run("show", name(1)) == 0
    said = capsys.readouterr().out
    assert "chosen     small, propensity 0.9: leads large by 0.1 utility" in said
    assert "*  small      0.01  0.5 +- 0.12  0.4000" in said
    assert "   large      0.04  0.9          0.3000   fits_context" in said
    assert "prompt     say hello" in said
    assert "outcome    status 200, state ok, selected small, attempts 1, latency_s 0.25" in said
    assert "key-1: quality 0.5" in said
    assert ": quality 1 good" in said
    assert run("show", name(1), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["feedback"]) == 2


def test_an_unknown_decision_fails(run, path, capsys):
    fill(path, 1)
    assert run("show", "dec_x") == 1
    assert "no decision 'dec_x'" in capsys.readouterr().err


def test_what_clients_send_does_not_steer_the_terminal(run, path, capsys):
    journal = Journal(path)
    journal.decision(
        DecisionRecord(
            id="dec_1", request_id="r", time=NOW, endpoint="e", requested="\x1b[2J\nauto", policy="auto",
            selected="small", propensity=1.0, because="",
        )
    )  # fmt: skip
    journal.close()
    assert run("tail") == run("show", "dec_1") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "?[2J?auto" in said


def test_export_has_a_row_for_every_decision(run, path, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    fill(path, 5, prompt="say hello")
    assert run("export", "out.parquet") == 0
    assert capsys.readouterr().out == "out.parquet: 5 decisions\n"
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == [name(i) for i in range(5)]
    assert rows[1]["quality"] == 0.75
    assert rows[1]["reports"] == 2
    assert rows[2]["quality"] is None
    assert rows[2]["embedding"] == [2.0, 2.0, 2.0]
    assert rows[2]["cost_usd"] == 0.01
    assert (rows[2]["prompt"], rows[2]["dry_run"]) == ("say hello", False)
    assert json.loads(rows[2]["candidates"])[1]["refused"] == "fits_context"
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []


def test_export_never_ends_the_journal_itself(run, path, tmp_path):
    fill(path, 1)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"OUT: expected a file name ending in .parquet"):
        run("export", str(path))
    (tmp_path / "same.parquet").hardlink_to(path)
    with pytest.raises(ConfigError, match=r"OUT: expected another file than the one that is read"):
        run("export", str(tmp_path / "same.parquet"))
    assert path.read_bytes() == before


def test_prune_removes_old_rows_and_keeps_the_sums(run, path, capsys):
    fill(path, 100)
    before = path.stat().st_size
    assert run("prune", "--older-than", "9.5d", "--dry-run") == 0
    assert "would remove 90 decisions, 90 outcomes and 0 reports" in capsys.readouterr().out
    assert path.stat().st_size == before
    assert run("prune", "--older-than", "9.5d") == 0
    assert "removed 90 decisions, 90 outcomes and 0 reports" in capsys.readouterr().out
    assert path.stat().st_size < before / 2
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM decisions").fetchone() == (10,)
        assert file.execute("SELECT count(*) FROM outcomes").fetchone() == (10,)
        assert file.execute("SELECT count(*) FROM feedback").fetchone() == (2,)
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again = Journal(path)
    assert again.totals()["requests"] == 100
    assert again.find(name(50)) is None
    again.close()


def test_prune_also_removes_what_is_left_without_its_decision(run, path, capsys):
    journal = Journal(path)
    journal.outcome(OutcomeRecord(decision_id="gone", time=NOW - 9 * DAY, status=200, state="ok", selected="m"))
    journal.feedback(FeedbackRecord(decision_id="gone", time=NOW - 9 * DAY, metrics={"quality": 1.0}))
    journal.feedback(FeedbackRecord(decision_id="new", time=NOW, metrics={"quality": 1.0}))
    journal.close()
    assert run("prune", "--older-than", "1w") == 0
    assert "removed 0 decisions, 1 outcomes and 1 reports" in capsys.readouterr().out


def test_prune_beside_a_running_gateway_loses_nothing_new(run, path):
    fill(path, 3000)
    journal = Journal(path, flush_s=0.005)
    stop = threading.Event()
    written = 0

    def serve() -> None:
        nonlocal written
        while not stop.is_set():
            outcome = OutcomeRecord(decision_id=f"new_{written}", time=NOW, status=200, state="ok", selected="m")
            journal.outcome(outcome)
            written += 1
            stop.wait(0.001)

    thread = threading.Thread(target=serve)
    thread.start()
    assert run("prune", "--older-than", "1d") == 0
    stop.set()
    thread.join()
    journal.close()
    assert journal.status().dropped == 0
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM outcomes WHERE decision_id LIKE 'new_%'").fetchone() == (written,)


def test_a_wrong_age_is_refused(run, path):
    fill(path, 1)
    with pytest.raises(ConfigError, match="--older-than: expected a number with m, h, d or w, as in 30d, got '30'"):
        run("prune", "--older-than", "30")


@pytest.mark.parametrize(
    "words", [("stats",), ("tail",), ("show", "x"), ("export", "o.parquet"), ("prune", "--older-than", "1d")]
)
def test_a_journal_that_is_not_there_is_named(run, path, tmp_path, words):
    with pytest.raises(JournalError, match=r"j.sqlite: expected a polyroute journal, got no file"):
        run(*words)
    assert list(tmp_path.iterdir()) == [], "looking does not make one"
    path.write_text("not a database, whatever its name says")
    with pytest.raises(JournalError, match=r"got DatabaseError: file is not a database"):
        run(*words)


def test_the_journal_of_the_configuration_here_is_found(run, tmp_path, capsys):
    fill(tmp_path / "logs" / "own.sqlite", 1)
    (tmp_path / "polyroute.toml").write_text(
        '[server]\nclient_keys = ["env:NOT_SET_HERE"]\n[journal]\npath = "logs/own.sqlite"\n', encoding="utf-8"
    )
    assert run("stats", there=None) == 0
    assert f"{tmp_path}/logs/own.sqlite: " in capsys.readouterr().out


def test_help_has_examples(run, capsys):
    with pytest.raises(SystemExit):
        run("--help", there=None)
    assert "polyroute journal prune --older-than 30d" in capsys.readouterr().out
