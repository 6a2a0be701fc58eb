from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from journal_records import decision, feedback, name, outcome

from polyroute.errors import ConfigError
from polyroute.gateway import journal_file
from polyroute.gateway.journal import Journal
from polyroute.gateway.journal_care import contents


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for another thread; the limit only ends a hanging test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    opened = Journal(path, flush_s=0.01)
    yield opened
    opened.close()


def test_everything_recorded_is_found_at_once_and_again_in_the_file(journal: Journal, path: Path) -> None:
    for i in range(3):
        journal.decision(decision(i))
        journal.outcome(outcome(i))
    journal.feedback(feedback(1, 0.25, comment="too short"))
    at_once = journal.find(name(1))
    journal.close()
    again = Journal(path, recent=0)
    later = again.find(name(1))
    again.close()
    assert at_once == later
    assert later is not None
    assert later["decision"]["candidates"][1] == {
        "id": "large", "mean": {"quality": 0.8, "cost": 3e-3}, "utility": 0.2, "refused": "healthy",
    }  # fmt: skip
    assert later["outcome"]["cost_usd"] == 0.04
    assert later["feedback"] == [
        {"decision_id": name(1), "time": 1_700_000_002.0, "metrics": {"quality": 0.25}, "source": "user",
         "comment": "too short"}
    ]  # fmt: skip
    assert "embedding" not in later["decision"]


def test_what_was_never_decided_is_not_found(journal: Journal) -> None:
    assert journal.find("dec_0") is None
    assert journal.find("'; DROP TABLE decisions; --") is None


def test_the_columns_are_the_published_ones(journal: Journal, path: Path) -> None:
    journal.decision(decision(1, session="s", tenant="key-1", dry_run=True))
    journal.outcome(outcome(1, error="none", cached_tokens=3, attempts=2))
    journal.feedback(feedback(1, 0.5))
    journal.close()
    (row,) = rows(path, """SELECT id, time, request_id, endpoint, requested, policy, selected, propensity, router,
        artefact, features, prompt_tokens, session, tenant, dry_run, embedding FROM decisions""")  # fmt: skip
    assert row[:15] == (
        name(1), 1_700_000_001.0, "req_1", "chat.completions", "auto", "auto", "large", 0.5, "knn 1", "abc",
        "static-1", 601, "s", "key-1", 1,
    )  # fmt: skip
    assert np.frombuffer(row[15], dtype="<f2").tolist() == [0.0, 1.0, 2.0, 3.0]
    (row,) = rows(path, """SELECT decision_id, status, state, selected, attempts, latency_s, first_byte_s,
        prompt_tokens, cached_tokens, completion_tokens, cost_usd, dearest_usd, error FROM outcomes""")  # fmt: skip
    assert row == (name(1), 200, "ok", "large", 2, 0.5, 0.1, 600, 3, 200, 0.04, 0.04, "none")
    (row,) = rows(path, "SELECT decision_id, quality, source, json_extract(record, '$.metrics.quality') FROM feedback")
    assert row == (name(1), 0.5, "user", 0.5)
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    assert rows(path, "PRAGMA auto_vacuum") == [(2,)]


def test_only_the_owner_may_read_the_file(journal: Journal, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("store", "prompt", "embedding"),
    [("features", None, True), ("prompts", "a secret plan", True), ("nothing", None, False)],
)
def test_prompts_are_kept_only_where_asked_for(path: Path, store: str, prompt: str | None, embedding: bool) -> None:
    journal = Journal(path, store=store)
    given = decision(0, prompt="a secret plan")
    journal.decision(given)
    seen = journal.find(name(0))
    journal.close()
    assert given.prompt == "a secret plan", "the caller's record is the caller's"
    assert seen is not None
    assert seen["decision"]["prompt"] == prompt
    assert (b"a secret plan" in path.read_bytes()) == (prompt is not None)
    assert rows(path, "SELECT embedding IS NOT NULL FROM decisions") == [(int(embedding),)]


def test_an_unknown_store_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"journal.store: expected one of features, prompts, nothing, got 'all'"):
        Journal(path, store="all")


def test_recent_is_newest_first_and_bounded(path: Path) -> None:
    journal = Journal(path, recent=5)
    for i in range(8):
        journal.decision(decision(i))
    assert [row["decision"]["id"] for row in journal.recent(3)] == [name(7), name(6), name(5)]
    assert len(journal.recent(100)) == 5
    journal.close()
    again = Journal(path, recent=5)
    again.decision(decision(8))
    assert [row["decision"]["id"] for row in again.recent(4)] == [name(8), name(7), name(6), name(5)]
    assert again.find(name(0)) is not None, "older ones are in the file"
    again.close()


def test_totals_are_the_sums_by_hand(journal: Journal) -> None:
    for i in range(4):
        journal.decision(decision(i))
        journal.outcome(outcome(i))
    journal.decision(decision(4, dry_run=True))
    journal.outcome(outcome(5, state="error", status=502, cost_usd=None, dearest_usd=None))
    journal.feedback(feedback(0, 1.0))
    journal.feedback(feedback(2, 0.0))
    journal.feedback(feedback(1, 0.75))
    journal.feedback(feedback(1, 0.0, metrics={"tool_success": 1.0}))
    totals = journal.totals()
    assert (totals["decisions"], totals["requests"], totals["dry_runs"]) == (4, 5, 1)
    assert totals["spend_usd"] == pytest.approx(2 * 0.01 + 2 * 0.04)
    assert totals["dearest_usd"] == pytest.approx(4 * 0.04)
    assert totals["saved_usd"] == pytest.approx(2 * 0.03)
    assert totals["states"] == {"ok": 4, "error": 1}
    assert totals["policies"] == {"auto": 4}
    assert totals["quality"] == pytest.approx(1.75 / 3)
    assert totals["models"]["small"]["quality"] == 0.5
    assert totals["models"]["large"]["quality"] == 0.75
    assert totals["models"]["small"]["requests"] == 2
    assert totals["models"]["large"]["requests"] == 3
    assert totals["models"]["large"]["spend_usd"] == pytest.approx(0.08)
    assert totals["models"]["large"]["completion_tokens"] == 600


def test_a_request_without_a_dearest_price_counts_as_no_saving(journal: Journal) -> None:
    journal.outcome(outcome(0, dearest_usd=None))
    assert journal.totals()["saved_usd"] == 0.0


def test_a_second_outcome_replaces_the_first(journal: Journal, path: Path) -> None:
    journal.decision(decision(0))
    journal.outcome(outcome(0, cost_usd=5.0))
    journal.outcome(outcome(0, cost_usd=0.5))
    assert journal.totals()["spend_usd"] == pytest.approx(0.5)
    assert journal.totals()["requests"] == 1
    journal.close()
    assert rows(path, "SELECT cost_usd FROM outcomes") == [(0.5,)]


def test_totals_go_on_after_a_restart_and_count_feedback_on_old_decisions(path: Path) -> None:
    first = Journal(path)
    for i in range(6):
        first.decision(decision(i))
        first.outcome(outcome(i))
    before = first.totals()
    first.close()
    second = Journal(path, recent=2)
    assert second.totals() == before
    assert second.find(name(1)) is not None  # what the feedback endpoint does first
    second.feedback(feedback(1, 0.5))
    second.outcome(outcome(6))
    second.close()
    third = Journal(path)
    assert third.totals()["spend_usd"] == pytest.approx(before["spend_usd"] + 0.01)
    assert third.totals()["models"]["large"]["quality"] == 0.5
    third.close()


def test_two_gateways_share_a_file_and_their_sums_add_up(path: Path) -> None:
    journals = [Journal(path, flush_s=0.005) for _ in range(2)]

    def work(which: int) -> None:
        for i in range(which, 400, 2):
            journals[which].decision(decision(i))
            journals[which].outcome(outcome(i))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for journal in journals:
        journal.close()
    assert rows(path, "SELECT count(*) FROM decisions") == [(400,)]
    after = Journal(path)
    assert after.totals()["requests"] == 400
    assert after.totals()["spend_usd"] == pytest.approx(200 * 0.05)
    after.close()


def test_any_thread_may_record(journal: Journal, path: Path) -> None:
    def work(start: int) -> None:
        for i in range(start, start + 500):
            journal.decision(decision(i))
            journal.totals()

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 500, 1000, 1500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.totals()["decisions"] == 2000
    journal.close()
    assert journal.status()._replace(reason="") == (False, "", 0, 2000, 0)
    assert rows(path, "SELECT count(*), count(DISTINCT id) FROM decisions") == [(2000, 2000)]


def test_a_locked_file_costs_nothing_but_time(journal: Journal, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal.decision(decision(0))
    until(lambda: journal.status().written == 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for i in range(1, 50):
        journal.decision(decision(i))
        journal.outcome(outcome(i))
    until(lambda: not journal.status().ok)
    status = journal.status()
    assert "locked" in status.reason
    assert str(path) in status.reason
    assert (status.queued, status.dropped) == (98, 0)
    assert journal.find(name(49)) is not None
    assert journal.totals()["requests"] == 49
    other.execute("ROLLBACK")
    other.close()
    until(lambda: journal.status().ok)
    assert journal.status() == (True, "", 0, 99, 0)
    assert rows(path, "SELECT count(*) FROM outcomes") == [(49,)]
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2, "once when it begins, once when it ends"


def test_a_file_locked_at_the_start_is_written_once_it_is_free(path: Path) -> None:
    Journal(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    journal = Journal(path, flush_s=0.01)
    journal.decision(decision(0))
    assert not journal.status().ok
    other.close()
    until(lambda: journal.status().ok)
    journal.close()
    assert rows(path, "SELECT id FROM decisions") == [(name(0),)]


def test_closing_waits_for_a_lock_within_its_deadline(path: Path) -> None:
    journal = Journal(path, flush_s=0.01)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    journal.decision(decision(0))
    until(lambda: not journal.status().ok)
    threading.Timer(0.3, other.close).start()
    journal.close(20.0)
    assert rows(path, "SELECT id FROM decisions") == [(name(0),)]


def test_closing_gives_up_at_its_deadline_and_says_what_was_lost(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(path, flush_s=0.01)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        journal.decision(decision(0))
        journal.decision(decision(1))
        journal.close(0.1)
    assert journal.status() == (False, "closed", 0, 0, 2)
    assert "closed with 2 records not written" in caplog.text
    journal.decision(decision(2))
    assert journal.status().dropped == 3


def test_memory_is_bounded_when_the_file_never_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    journal = Journal(tmp_path / "file" / "journal.sqlite", capacity=100, flush_s=0.005, recent=10)
    for i in range(2000):
        journal.decision(decision(i))
        assert journal.status().queued <= 100
        if i % 100 == 0:
            time.sleep(0.01)  # so that the writer has seen some and others overflow unseen
    status = journal.status()
    assert (status.ok, status.queued, status.written, status.dropped) == (False, 100, 0, 1900)
    assert journal.totals()["decisions"] == 2000, "what was dropped is still counted"
    assert len(journal.recent(1000)) == 10
    journal.close(0.1)


def test_long_records_are_bounded_by_memory_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "j.sqlite", flush_s=0.005, store="prompts", capacity_mb=1.0, recent=10)
    for i in range(300):
        journal.decision(decision(i, prompt="x" * 10_000))
    until(lambda: journal.status().queued < 110)
    assert journal.status().queued > 80  # 1 MiB / (10,000 characters and what surrounds them)
    assert journal.status().queued + journal.status().dropped == 300
    journal.close(0.1)


def test_a_damaged_file_is_kept_under_another_name(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database" * 100)
    journal = Journal(path, flush_s=0.01, clock=lambda: 1_700_000_000.0)
    journal.decision(decision(0))
    until(lambda: journal.status().ok)
    journal.close()
    kept = path.with_name("journal.sqlite.corrupt-20231114T221320Z")
    assert kept.read_bytes() == b"this is not a database" * 100
    assert rows(path, "SELECT id FROM decisions") == [(name(0),)]
    assert str(kept) in caplog.text


def test_a_file_replaced_by_rubbish_while_running_loses_no_sums_and_no_new_records(path: Path) -> None:
    journal = Journal(path, flush_s=0.01)
    for i in range(40):
        journal.decision(decision(i))
        journal.outcome(outcome(i))
    until(lambda: journal.status().queued == 0)
    assert rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0  # else the log alone would restore the file
    damaged = path.with_name("damaged")
    damaged.write_bytes(b"\xff" * 8192)
    damaged.replace(path)  # what a bad restore does
    for i in range(40, 50):
        journal.decision(decision(i))
    until(lambda: journal.status().ok and journal.status().queued == 0 and list(path.parent.glob("*.corrupt-*")))
    journal.close()
    again = Journal(path)
    assert again.totals()["decisions"] == 50
    assert again.totals()["requests"] == 40
    again.close()
    assert rows(path, "SELECT count(*) FROM decisions") == [(10,)]


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
        connection.commit()
    before = path.read_bytes()
    journal = Journal(path)
    journal.decision(decision(0))
    assert journal.status().reason.endswith("got another program's database with 1 tables. Name another path.")
    journal.close(0.1)
    assert path.read_bytes() == before


def test_a_journal_of_a_later_version_is_left_alone(path: Path) -> None:
    Journal(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 3")
    journal = Journal(path)
    assert "schema 3 where this version reads 2" in journal.status().reason
    assert journal.find(name(0)) is None
    journal.close(0.1)


OLDER = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE totals (name TEXT NOT NULL, label TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, label))
    WITHOUT ROWID;
CREATE TABLE decisions (
    id TEXT PRIMARY KEY, time REAL NOT NULL, request_id TEXT NOT NULL, endpoint TEXT NOT NULL, requested TEXT NOT NULL,
    policy TEXT NOT NULL, selected TEXT NOT NULL, propensity REAL NOT NULL, router TEXT NOT NULL,
    artefact TEXT NOT NULL, features TEXT NOT NULL, prompt_tokens INTEGER, session TEXT, tenant TEXT,
    dry_run INTEGER NOT NULL, embedding BLOB, record TEXT NOT NULL);
CREATE TABLE outcomes (
    decision_id TEXT PRIMARY KEY, time REAL NOT NULL, status INTEGER NOT NULL, state TEXT NOT NULL,
    selected TEXT NOT NULL, attempts INTEGER NOT NULL, latency_s REAL, first_byte_s REAL, prompt_tokens INTEGER,
    cached_tokens INTEGER, completion_tokens INTEGER, cost_usd REAL, dearest_usd REAL, error TEXT,
    record TEXT NOT NULL);
CREATE TABLE feedback (
    decision_id TEXT NOT NULL, time REAL NOT NULL, source TEXT NOT NULL, quality REAL, record TEXT NOT NULL,
    UNIQUE (decision_id, time, record));
CREATE INDEX decisions_time ON decisions (time);
CREATE INDEX outcomes_time ON outcomes (time);
CREATE INDEX feedback_time ON feedback (time);
INSERT INTO meta VALUES ('schema', '1'), ('created', '1');
INSERT INTO totals VALUES ('decisions', 'large', 2.0);
PRAGMA user_version = 1;
PRAGMA application_id = 0x706F6C79;
"""


def version_1(path: Path, number: int) -> None:
    """A journal as the first version wrote it, with a few decisions and their outcomes."""
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.executescript(OLDER)
        for i in range(number):
            d, o = decision(i), outcome(i)
            plain = msgspec.structs.replace(d, embedding=None)
            values = [*(getattr(d, name) for name in (
                "id", "time", "request_id", "endpoint", "requested", "policy", "selected", "propensity", "router",
                "artefact", "features", "prompt_tokens", "session", "tenant", "dry_run", "embedding"))]  # fmt: skip
            file.execute(f"INSERT INTO decisions VALUES ({', '.join('?' * 17)})",
                         [*values, msgspec.json.encode(plain).decode()])  # fmt: skip
            values = [*(getattr(o, name) for name in (
                "decision_id", "time", "status", "state", "selected", "attempts", "latency_s", "first_byte_s",
                "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "dearest_usd", "error",
            ))]  # fmt: skip
            file.execute(f"INSERT INTO outcomes VALUES ({', '.join('?' * 15)})",
                         [*values, msgspec.json.encode(o).decode()])  # fmt: skip


def test_a_journal_of_the_first_version_is_read_and_then_converted(path: Path) -> None:
    version_1(path, 5)
    everything = "SELECT d.id, d.policy, d.propensity, d.dry_run, d.embedding, d.record FROM decisions d ORDER BY rowid"
    yielded = "SELECT decision_id, time, status, state, cost_usd, latency_s, error, record FROM outcomes ORDER BY rowid"
    before = rows(path, everything), rows(path, yielded)
    assert contents(path).decisions == 5  # as it is
    journal = Journal(path)
    journal.decision(decision(5))
    found = journal.find(name(3))
    assert found is not None
    assert found["outcome"]["cost_usd"] == 0.04
    journal.close()
    assert (rows(path, everything)[:5], rows(path, yielded)) == before
    assert rows(path, "SELECT count(*) FROM decisions") == [(6,)]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    assert rows(path, "SELECT value FROM meta WHERE key = 'schema'") == [("2",)]
    assert rows(path, "SELECT value FROM totals WHERE name = 'decisions' AND label = 'large'") == [(3.0,)]
    indices = rows(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE '%_time' ORDER BY name")
    assert indices == [("decision_records_time",), ("feedback_time",), ("outcome_records_time",)]


def test_a_file_deleted_while_running_is_made_again(journal: Journal, path: Path) -> None:
    journal.decision(decision(0))
    until(lambda: journal.status().written == 1)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    journal.decision(decision(1))
    until(lambda: journal.status().written == 2)
    journal.close()
    assert rows(path, "SELECT id FROM decisions") == [(name(1),)]


def test_a_record_that_nothing_can_hold_does_not_stop_the_others(journal: Journal, path: Path) -> None:
    journal.decision(decision(0))
    journal.outcome(outcome(0, usage={"odd": object()}))  # JSON cannot
    journal.outcome(outcome(1, time=2**70))  # SQLite cannot
    journal.decision(decision(1, requested="\ud800"))  # UTF-8 cannot
    journal.outcome(outcome(2, usage={"huge": 2**70, "nan": float("nan")}))  # fine
    journal.close()
    assert journal.status()[2:] == (0, 2, 3)
    assert rows(path, "SELECT id FROM decisions") == [(name(0),)]
    assert rows(path, "SELECT decision_id FROM outcomes") == [(name(2),)]


def test_a_batch_written_twice_is_one_batch(path: Path) -> None:
    batch = [journal_file.row_of(record) for record in (decision(0), outcome(0), feedback(0), feedback(0, 0.5))]
    with contextlib.closing(journal_file.open_to_write(path, 0.0)) as connection:
        journal_file.write(connection, batch, {})
        journal_file.write(connection, batch, {})
    assert rows(path, "SELECT count(*) FROM decisions") == [(1,)]
    assert rows(path, "SELECT count(*) FROM outcomes") == [(1,)]
    assert rows(path, "SELECT count(*) FROM feedback") == [(2,)]


def test_an_idle_journal_does_not_wake_up(journal: Journal) -> None:
    until(lambda: journal._idle)
    journal._encode = journal._flush = None  # type: ignore[method-assign,assignment]  # would end the thread
    time.sleep(0.1)
    assert all(thread.is_alive() for thread in journal._threads)
    del journal._encode, journal._flush
