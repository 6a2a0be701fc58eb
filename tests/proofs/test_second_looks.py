"""Pieces that the second versions of proofs rest on, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.proofs.proof import effect_over_seeds
from polyroute.proofs.tables import each_held_out
from polyroute.proofs.workload_pools import bytes_error
from polyroute.types import Candidate, Outcomes, Query


def table(queries: list[Query], dataset: list[str]) -> Outcomes:
    n = len(queries)
    labels = {"dataset": np.array(dataset), "group": np.arange(n) // 2}
    return Outcomes(queries, [Candidate("a")], {"quality": np.ones((n, 1))}, np.ones((n, 1), bool), labels)


def test_each_query_is_held_out_once_and_never_beside_its_group():
    outcomes = table([Query(str(i), f"text {i // 2}") for i in range(40)], ["mmlu"] * 40)
    seen = np.zeros(40, int)
    for train, test, rows in each_held_out(outcomes, 3):
        seen[rows] += 1
        assert [q.id for q in test.queries] == [str(i) for i in rows]
        assert len(train) + len(test) == 40
        assert not set(train.labels["group"]) & set(test.labels["group"])
    assert (seen == 1).all()


@pytest.mark.parametrize("num_seeds", [2, 5, 10, 12, 16, 20])
def test_intervals_over_seeds_are_students(num_seeds):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(size=num_seeds)
    low, high = stats.t.interval(0.95, num_seeds - 1, loc=values.mean(), scale=stats.sem(values))
    effect = effect_over_seeds("x", values, "points")
    assert (effect.low, effect.high) == pytest.approx((low, high), abs=1e-3)


def test_intervals_over_many_seeds_are_hardly_narrower_than_students():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(size=30)
    low, _ = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert effect_over_seeds("x", values, "points").low <= low + 1e-3


def test_a_kind_of_text_is_not_found_by_a_part_of_another_name():
    tokens = {"mmlu": 25, "arc_easy": 25, "cmmlu": 80, "mbpp": 40}  # of 100 bytes
    queries = [Query(f"{name}-{i}", "x" * 100, num_tokens=count) for name, count in tokens.items() for i in range(300)]
    error = bytes_error(table(queries, [name for name in tokens for _ in range(300)]), seed=0)
    assert error["english"] == error["chinese"] == error["code"] == pytest.approx(0.0, abs=1e-9)
    assert error["english at 4"] == pytest.approx(0.0, abs=1e-9)
    assert error["chinese at 4"] == pytest.approx(100 * (1 - 25 / 80))
    assert error["mixed"] > 0.1
