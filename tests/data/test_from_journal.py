"""The journal is written by the gateway's own writer, so a change of its schema shows here."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from polyroute.data.from_journal import load_journal
from polyroute.errors import OutcomesError

pytest.importorskip("msgspec", reason="needs the gateway: pip install 'polyroute[gateway]'")
from polyroute.gateway.journal import Journal
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord, Weighed


def decided(i: int, selected: str = "small", **more) -> DecisionRecord:
    known = {
        "id": f"dec_{i:024x}", "request_id": f"req_{i}", "time": float(i), "endpoint": "chat.completions",
        "requested": "auto", "policy": "auto", "selected": selected, "propensity": 0.25, "because": "",
        "candidates": [Weighed(id="small"), Weighed(id="large"), Weighed(id="never")], "features": "static-1",
        "embedding": np.array([i, 1.5], np.float16).tobytes(), "prompt_tokens": 11, "prompt": f"text {i}",
    }  # fmt: skip
    return DecisionRecord(**{**known, **more})


def came(i: int, selected: str = "small", **more) -> OutcomeRecord:
    known = {
        "decision_id": f"dec_{i:024x}", "time": i + 0.5, "status": 200, "state": "ok", "selected": selected,
        "latency_s": 0.5, "completion_tokens": 20, "cost_usd": 0.001,
    }  # fmt: skip
    return OutcomeRecord(**{**known, **more})


def said(i: int, time: float = 1.0, **metrics: float) -> FeedbackRecord:
    return FeedbackRecord(decision_id=f"dec_{i:024x}", time=time, metrics=metrics)


@pytest.fixture
def write(tmp_path):
    def written(*records):
        journal = Journal(tmp_path / "j.sqlite", store="prompts")
        for record in records:
            kind = {DecisionRecord: journal.decision, OutcomeRecord: journal.outcome, FeedbackRecord: journal.feedback}
            kind[type(record)](record)
        journal.close()
        return tmp_path / "j.sqlite"

    return written


def test_decisions_outcomes_and_feedback_become_a_log(write):
    path = write(decided(1), came(1), said(1, quality=0.5), decided(2, "large", session="s"), came(2, "large"),
                 said(2, quality=1.0, politeness=0.7))  # fmt: skip
    log = load_journal(path)
    assert [candidate.id for candidate in log.pool] == ["large", "never", "small"]
    np.testing.assert_array_equal(log.observed, [[False, False, True], [True, False, False]])
    np.testing.assert_array_equal(log.values["quality"], [[np.nan, np.nan, 0.5], [1.0, np.nan, np.nan]])
    assert log.values["cost"][1, 0] == 0.001
    assert log.values["latency"][1, 0] == 0.5
    assert log.values["output_tokens"][1, 0] == 20
    assert log.values["politeness"][1, 0] == 0.7
    np.testing.assert_array_equal(log.propensity, [0.25, 0.25])
    assert [(q.text, q.num_tokens) for q in log.queries] == [("text 1", 11), ("text 2", 11)]
    np.testing.assert_array_equal(log.queries[1].embedding, np.array([2, 1.5], np.float32))
    assert log.labels["group"].tolist() == ["", "s"]
    assert log.labels["time"].tolist() == [1.0, 2.0]


def test_only_answers_with_the_metrics_required_count(write):
    path = write(
        decided(1), came(1), said(1, quality=1.0),
        decided(2), came(2),  # nobody said how good it was
        decided(3), came(3, state="error", status=502), said(3, quality=0.0),
        decided(4),  # no outcome yet
        decided(5, dry_run=True), came(5), said(5, quality=1.0),
    )  # fmt: skip
    assert [query.id[-1] for query in load_journal(path).queries] == ["1"]
    assert [query.id[-1] for query in load_journal(path, require=()).queries] == ["1", "2"]
    assert [query.id[-1] for query in load_journal(path, require=("cost", "latency")).queries] == ["1", "2"]


def test_the_latest_report_stands_and_measurements_are_not_replaced(write):
    path = write(decided(1), came(1), said(1, 9.0, quality=0.25), said(1, 2.0, quality=1.0, cost=99.0))
    log = load_journal(path)
    assert np.nansum(log.values["quality"]) == 0.25
    assert np.nansum(log.values["cost"]) == 0.001


def test_a_fallback_counts_for_the_one_that_answered_without_a_propensity(write):
    log = load_journal(write(decided(1, "large"), came(1, "small"), said(1, quality=1.0)))
    assert log.observed[0].tolist() == [False, False, True]
    assert np.isnan(log.propensity[0])


def test_embeddings_of_another_featuriser_are_not_mixed_in(write):
    path = write(*(r for i, name in ((1, "old-1"), (2, "static-1")) for r in
                   (decided(i, features=name), came(i), said(i, quality=1.0))))  # fmt: skip
    assert [query.embedding is None for query in load_journal(path).queries] == [True, False]
    assert [query.embedding is None for query in load_journal(path, features="old-1").queries] == [False, True]


def test_a_journal_is_read_while_it_is_written(write, tmp_path):
    path = write(decided(1), came(1), said(1, quality=1.0))
    journal = Journal(path, store="prompts")
    try:
        journal.decision(decided(2))
        assert len(load_journal(path)) == 1
    finally:
        journal.close()


def test_what_is_no_journal_is_named(write, tmp_path):
    with pytest.raises(OutcomesError, match=r"none\.sqlite: expected a journal, got no such file"):
        load_journal(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database, and long enough to be read as a header of a page" * 20)
    with pytest.raises(OutcomesError, match=r"text\.sqlite: expected a polyroute journal, got: file is not a database"):
        load_journal(tmp_path / "text.sqlite")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    with pytest.raises(OutcomesError, match=r"other\.sqlite: .* got another program's database"):
        load_journal(tmp_path / "other.sqlite")
    path = write(decided(1), came(1))
    with pytest.raises(OutcomesError, match=r"got 1 decisions with an outcome and none with all of these"):
        load_journal(path)
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(OutcomesError, match="of version 2 or before, got version 9"):
        load_journal(path)


def test_a_report_that_cannot_be_is_named(write):
    path = write(decided(1), came(1), said(1, quality=7.0))
    with pytest.raises(OutcomesError, match=r"decision 'dec_0*1': expected quality in 0..1, got 7"):
        load_journal(path)
