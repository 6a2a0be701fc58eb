from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polyroute.gateway.telemetry import BOUNDS, Telemetry


def read(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(sample name, sorted labels) -> value, parsed as a scraper would."""
    families = text_string_to_metric_families(telemetry.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(telemetry: Telemetry, sample: str, **labels: str) -> float:
    return read(telemetry)[sample, tuple(sorted(labels.items()))]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(models=["small", "large"], policies=["auto"])


def test_a_duration_falls_in_every_bucket_from_its_own_on(telemetry: Telemetry) -> None:
    durations = [1e-5, 3e-5, 0.004, 0.5, 61.0]
    for seconds in durations:
        telemetry.stage("decide", seconds)
    for bound in BOUNDS:
        expected = sum(seconds <= bound for seconds in durations)
        assert value(telemetry, "polyroute_stage_seconds_bucket", stage="decide", le=repr(bound)) == expected
    assert value(telemetry, "polyroute_stage_seconds_bucket", stage="decide", le="+Inf") == 5
    assert value(telemetry, "polyroute_stage_seconds_count", stage="decide") == 5
    assert value(telemetry, "polyroute_stage_seconds_sum", stage="decide") == pytest.approx(sum(durations))


def test_the_bounds_reach_from_ten_microseconds_to_a_minute() -> None:
    assert BOUNDS[0] == 1e-5
    assert BOUNDS[-1] == 60.0
    assert list(BOUNDS) == sorted(set(BOUNDS))


def test_counters_add_up_by_label(telemetry: Telemetry) -> None:
    telemetry.settled("chat.completions", "auto", "small", 200, 0.2, 0.002, 600, 200)
    telemetry.settled("chat.completions", "named", "small", 200, 0.4, 0.003, 30, 0)
    telemetry.settled("chat.completions", "named", "large", 502, 0.1, 0.1, 0, 0, 0.25)
    telemetry.settled("chat.completions", "named", "large", 502, 0.1, 0.1, usd=0.5)
    telemetry.request("chat.completions", "none", 401, 0.001)
    telemetry.upstream_failure("small", "timeout")
    telemetry.upstream_failure("small", "429")
    name = "polyroute_requests_total"
    assert value(telemetry, name, endpoint="chat.completions", model="small", status="200") == 2
    assert value(telemetry, name, endpoint="chat.completions", model="none", status="401") == 1
    assert value(telemetry, name, endpoint="chat.completions", model="large", status="502") == 2
    assert value(telemetry, "polyroute_request_seconds_count", endpoint="chat.completions") == 5
    assert value(telemetry, "polyroute_request_seconds_sum", endpoint="chat.completions") == pytest.approx(0.801)
    assert value(telemetry, "polyroute_decisions_total", policy="auto", model="small") == 1
    assert value(telemetry, "polyroute_decisions_total", policy="named", model="small") == 1
    assert value(telemetry, "polyroute_decisions_total", policy="named", model="large") == 2
    assert value(telemetry, "polyroute_tokens_total", model="small", kind="prompt") == 630
    assert value(telemetry, "polyroute_tokens_total", model="small", kind="completion") == 200
    assert value(telemetry, "polyroute_spend_usd_total", model="large") == 0.75
    assert value(telemetry, "polyroute_upstream_failures_total", model="small", kind="timeout") == 1
    assert value(telemetry, "polyroute_upstream_failures_total", model="small", kind="429") == 1
    assert value(telemetry, "polyroute_overhead_seconds_count") == 4
    assert value(telemetry, "polyroute_overhead_seconds_sum") == pytest.approx(0.205)


def test_a_look_in_between_changes_no_count(telemetry: Telemetry) -> None:
    for _ in range(3):
        telemetry.settled("chat.completions", "auto", "small", 200, 0.2, 0.002, 10, 5, 0.5)
        telemetry.render()
    assert value(telemetry, "polyroute_requests_total", endpoint="chat.completions", model="small", status="200") == 3
    assert value(telemetry, "polyroute_tokens_total", model="small", kind="completion") == 15
    assert value(telemetry, "polyroute_spend_usd_total", model="small") == 1.5


def test_what_clients_send_never_becomes_a_series(telemetry: Telemetry) -> None:
    before = len(read(telemetry))
    sizes = set()
    for i in range(50):
        odd = f'x{i}"}} 1\npolyroute_evil'
        telemetry.request(odd, odd, 100_000 + i, 0.1)
        telemetry.stage(odd, 0.1)
        telemetry.settled(odd, odd, odd, 100_000 + i, 0.1, 0.1, 1, 1, 0.1)
        telemetry.upstream_failure(odd, odd)
        telemetry.upstream_failure(odd, f"{i}99")
        sizes.add(len(read(telemetry)))
    assert len(sizes) <= 6  # `other` once each, and the five failures that are a status
    assert max(sizes) < before + 80
    assert value(telemetry, "polyroute_requests_total", endpoint="other", model="other", status="other") == 100
    assert b"evil" not in telemetry.render()


def test_without_configured_names_everything_is_other() -> None:
    telemetry = Telemetry()
    telemetry.settled("route", "mine", "small", 200, 0.1, 0.1, usd=1.0)
    telemetry.allow(models=["small"], policies=["mine"])
    telemetry.settled("route", "mine", "small", 200, 0.1, 0.1, usd=2.0)
    assert value(telemetry, "polyroute_spend_usd_total", model="other") == 1.0
    assert value(telemetry, "polyroute_spend_usd_total", model="small") == 2.0
    assert value(telemetry, "polyroute_decisions_total", policy="mine", model="small") == 1


def test_a_counter_never_falls_and_a_clock_set_back_counts_as_no_time(telemetry: Telemetry) -> None:
    for usd in (1.0, -5.0, float("nan")):
        telemetry.settled("route", "auto", "small", 200, 0.1, 0.1, -1, -1, usd)
    for seconds in (-1.0, float("nan")):
        telemetry.stage("decide", seconds)
    assert value(telemetry, "polyroute_spend_usd_total", model="small") == 1.0
    assert value(telemetry, "polyroute_stage_seconds_count", stage="decide") == 2
    assert value(telemetry, "polyroute_stage_seconds_sum", stage="decide") == 0.0


def test_gauges_show_what_was_sampled_last(telemetry: Telemetry) -> None:
    telemetry.sample({"in_flight": 3, "journal_queued": 7, "journal_dropped": 2, "journal_ok": 0.0})
    telemetry.sample({"in_flight": 1})
    assert value(telemetry, "polyroute_in_flight") == 1
    assert value(telemetry, "polyroute_journal_queued") == 7
    assert value(telemetry, "polyroute_journal_dropped_total") == 2
    assert value(telemetry, "polyroute_journal_ok") == 0
    with pytest.raises(KeyError, match="no gauge 'typo'; expected one of in_flight"):
        telemetry.sample({"typo": 1})


def test_the_lag_is_the_worst_late_wake_up_of_the_window(telemetry: Telemetry) -> None:
    lateness: Iterator[float] = iter([0.0, 0.5, 0.1] + [0.0] * 40)
    now = 0.0
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        seen.append(value(telemetry, "polyroute_event_loop_lag_seconds"))
        now += seconds + next(lateness, float("inf"))
        if now == float("inf"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(telemetry.watch_loop(lambda: {"in_flight": 5}, interval_s=0.25, sleep=sleep, clock=lambda: now))
    assert seen[:4] == pytest.approx([0.0, 0.0, 0.5, 0.5], abs=1e-9)
    assert seen[-1] == pytest.approx(0.0, abs=1e-9), "forty good samples later it is forgotten"
    assert value(telemetry, "polyroute_in_flight") == 5


def test_the_text_has_help_types_and_the_process_but_no_creation_times(telemetry: Telemetry) -> None:
    telemetry.request("chat.completions", "small", 200, 0.2)
    text = telemetry.render().decode()
    assert "# TYPE polyroute_stage_seconds histogram" in text
    assert "# TYPE polyroute_requests_total counter" in text
    assert "# HELP polyroute_spend_usd_total Money spent, USD." in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


def test_two_telemetries_share_nothing() -> None:
    one, other = Telemetry(models=["small"]), Telemetry(models=["small"])
    one.settled("route", "auto", "small", 200, 0.1, 0.1, usd=1.0)
    assert ("polyroute_spend_usd_total", (("model", "small"),)) not in read(other)
