"""The journal in a process of its own that is killed, asked to end, or runs out of disk."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from journal_records import name

from polyroute.gateway.journal import Journal

HERE = Path(__file__).parent
LOST_S = 0.1  # what `kill -9` may cost

# Records without end, one decision and its outcome every millisecond or two; tells the clock after each.
WRITES = """
import itertools, os, signal, sys, time
from journal_records import decision, outcome
from polyroute.gateway.journal import Journal

journal = Journal(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    for i in itertools.count():
        journal.decision(decision(i))
        journal.outcome(outcome(i))
        os.write(1, f"{i} {time.monotonic()}\\n".encode())
        time.sleep(0.001)
finally:
    ENDING
"""

# The disk is full from 100 KB on (a limit on file size stands for it) and free again when a line comes in.
RUNS_OUT = """
import resource, sys, time
from journal_records import decision, outcome
from polyroute.gateway.journal import Journal

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
journal = Journal(sys.argv[1], flush_s=0.005)
for i in range(300):
    journal.decision(decision(i))
    journal.outcome(outcome(i))
    time.sleep(0.0005)
for _ in range(2000):
    if not journal.status().ok:
        break
    time.sleep(0.005)
print(journal.status(), journal.totals()["requests"], journal.find(decision(299).id) is not None, flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
journal.close(20.0)
print(journal.status(), flush=True)
"""


def start(script: str, path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_until(process: subprocess.Popen[str], count: int, how: signal.Signals) -> tuple[list[float], float, str]:
    """The clock after each record, the clock at the signal, and what was said on stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    told = [process.stdout.readline() for _ in range(count)]
    at = time.monotonic()
    process.send_signal(how)
    told += process.stdout.readlines()
    errors = process.stderr.read()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    return [float(line.split()[1]) for line in told if line.endswith("\n")], at, errors


def stored(path: Path) -> tuple[set[str], set[str]]:
    """Ids in the file: decisions, outcomes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        decisions = {row[0] for row in connection.execute("SELECT id FROM decisions")}
        return decisions, {row[0] for row in connection.execute("SELECT decision_id FROM outcomes")}


@pytest.mark.parametrize("count", [400, 1000, 1700])
def test_kill_9_costs_at_most_the_last_tenth_of_a_second(tmp_path: Path, count: int) -> None:
    path = tmp_path / "journal.sqlite"
    told, killed, _ = run_until(start(WRITES.replace("ENDING", "pass"), path), count, signal.SIGKILL)
    # A machine too busy to run the process at all lets both of its threads wait, and gaps in its record show it.
    waited = max((after - before for before, after in zip(told[-2000:], told[-1999:], strict=False)), default=0.0)
    safe = {name(i) for i, moment in enumerate(told) if moment < killed - LOST_S - waited}
    assert len(safe) > 100
    decisions, outcomes = stored(path)
    assert safe <= decisions
    assert safe <= outcomes
    again = Journal(path)
    assert again.status().ok
    assert again.totals()["requests"] >= len(safe)
    again.close()


@pytest.mark.parametrize("ending", ["journal.close()", "pass  # the journal closes itself when the process ends"])
def test_sigterm_loses_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "journal.sqlite"
    told, _, errors = run_until(start(WRITES.replace("ENDING", ending), path), 800, signal.SIGTERM)
    assert errors == ""
    decisions, outcomes = stored(path)
    assert {name(i) for i in range(len(told))} <= decisions & outcomes
    again = Journal(path)
    assert again.totals()["requests"] == len(outcomes)
    assert again.totals()["spend_usd"] == pytest.approx(sum((0.01, 0.04)[i % 2] for i in range(len(outcomes))))
    again.close()


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are a Unix feature")
def test_a_full_disk_is_survived_and_nothing_is_lost_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    process = start(RUNS_OUT, path)
    assert process.stdout is not None
    full = process.stdout.readline()
    assert "ok=False" in full
    assert "dropped=0" in full
    assert full.endswith("300 True\n")
    free, errors = process.communicate("\n")
    assert "queued=0, written=600, dropped=0" in free, errors
    decisions, outcomes = stored(path)
    assert len(decisions) == len(outcomes) == 300


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        from journal_records import decision

        journal = Journal(disk / "journal.sqlite", flush_s=0.005)
        for i in range(400):
            journal.decision(decision(i))
        for _ in range(2000):
            if not journal.status().ok:
                break
            time.sleep(0.005)
        assert "full" in journal.status().reason
        assert journal.status().dropped == 0
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, capture_output=True)
        journal.close(20.0)
        assert len(stored(disk / "journal.sqlite")[0]) == 400
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)
