from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline import benchmark
from polyroute.offline.benchmark import bench_baselines, bench_router, ground, minus, plain_knn, speed_of_pools
from polyroute.offline.results import Section, gap_closed, number, page, speed_targets
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.routers.price import Price


@pytest.fixture(scope="module")
def table():
    return ground(synthetic_outcomes(240, 3, rng=np.random.default_rng(0)).outcomes, resamples=30)


@pytest.fixture(scope="module")
def named(table):
    rows = [bench_router("plain kNN", plain_knn(table)[0], table), bench_router("default", KNN(), table),
            bench_router("same", Constant("quality", 0.5, 0.1), table), *bench_baselines(table)]  # fmt: skip
    return {row["name"]: row for row in rows}


def test_differences_are_paired_on_the_same_resamples(named):
    low, high = named["default"]["intervals"]["aiq"]
    value, below, above = minus(named["default"], named["shrunk kNN"])  # the same router twice
    assert (value, below, above) == (0, 0, 0)
    value, below, above = minus(named["default"], named["cheapest"])
    assert value == pytest.approx(named["default"]["aiq"] - named["cheapest"]["aiq"])
    assert below < value < above
    assert above - below < 2 * (high - low)


def test_a_router_that_knows_nothing_is_the_cheapest_model(named):
    assert named["same"]["aiq"] == pytest.approx(named["cheapest"]["aiq"])


def test_the_gap_runs_from_the_random_mix_to_the_oracle(named):
    assert gap_closed(named["random mix"], named) == 0
    assert gap_closed(named["oracle"], named) == 1
    assert 0 < gap_closed(named["default"], named) < 1
    assert np.isnan(gap_closed(named["default"], {}))


def test_speed_is_measured(named):
    for name in ("decisions_per_s", "decision_p50_us", "fit_s"):
        assert 0 < named["default"][name] < np.inf


def test_speed_among_strangers_stands_beside_its_targets(table):
    router = KNN(prior=Constant("quality", 0.5, 0.1))
    row = bench_router("default", router, table) | speed_of_pools(router, table) | {"file_mb": 1.25, "load_s": 0.0104}
    assert set(row["of_pools"]["alone_us"]) == {"12, text", "500, text", "12, no text", "500, no text"}
    assert all(0 < us < np.inf for us in row["of_pools"]["alone_us"].values())
    lines = speed_targets([Section("routerbench", "static-1", benchmark.about(table), [row], None)]).splitlines()
    assert lines[-1].startswith(f"| routerbench | {row['fit_s']:.1f} s | 1.2 MB | 10 ms | ")
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")  # a cell for each target


def test_a_router_without_quality_is_refused(table):
    with pytest.raises(benchmark.ConfigError, match="expected one that predicts quality"):
        bench_router("price", Price(), table)


@pytest.mark.parametrize(("target", "said"), [(0.0, ""), (0.99, "short")])
def test_targets_stand_beside_what_was_reached(monkeypatch, table, named, target, said):
    monkeypatch.setitem(benchmark.TARGETS, "routerbench", target)
    facts = benchmark.about(table)
    text = page([Section("routerbench", "static-1", facts, list(named.values()), "x.svg")],
                command="x", skipped={"price": "no quality"}, made_with={"numpy": "2"})  # fmt: skip
    (line,) = [line for line in text.splitlines() if line.startswith("| routerbench |")]
    assert f"| {target:.3f} | {named['default']['aiq']:.4f} [" in line
    assert said in line
    assert "ECE above 0.03" in line or named["default"]["ece"] <= 0.03
    order = [float(line.split("|")[2].split("[")[0]) for line in text.splitlines() if " us | " in line]
    assert len(order) == 3
    assert order == sorted(order, reverse=True)


def test_without_the_default_router_there_are_no_targets(named, table):
    rows = [row for name, row in named.items() if name != "default"]
    text = page([Section("routerbench", "static-1", benchmark.about(table), rows, None)], command="", skipped={},
                made_with={})  # fmt: skip
    assert "targets" not in text


def test_numbers_that_do_not_exist_are_left_out():
    assert [number(value) for value in (None, float("nan"), float("inf"), 0.5)] == ["", "", "never", "0.500"]
