"""Grouped search against the search through everything."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.allocation import Search, exhaustive_allocation, grouped_allocation_search, groups_by_price


def search_of(works, cost):
    return Search(range(len(works)), lambda columns: bool(works[np.arange(len(works)), list(columns)].all()), cost)


def test_groups_go_from_cheap_to_dear():
    assert groups_by_price(np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0])) == [[1, 2], [0, 5], [4, 3]]
    with pytest.raises(ConfigError, match="num_groups"):
        groups_by_price(np.ones(2), 3)


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_a_right_allocation_near_the_cheapest_in_few_runs(seed):
    rng = np.random.default_rng(seed)
    n, m = 3, 6
    cost = rng.random((n, 1)) * np.geomspace(0.1, 10, m)
    works = rng.random((n, m)) < np.linspace(0.3, 1.0, m)
    works[:, -1] = True
    search = search_of(works, cost)
    full = exhaustive_allocation(search)
    quick = grouped_allocation_search(search, rng.random(n), groups_by_price(cost))
    assert full.right
    assert full.calls == m**n
    assert quick.right
    assert search.is_correct(quick.columns)
    assert quick.cost == pytest.approx(full.cost), "all cheaper models of every step are tried within the limit"
    assert quick.calls <= 40


def test_a_limit_on_runs_is_kept_and_still_right():
    works, cost = np.ones((4, 9), bool), np.tile(np.arange(1.0, 10.0), (4, 1))
    found = grouped_allocation_search(search_of(works, cost), np.full(4, 0.9), groups_by_price(cost), max_calls=3)
    assert found.right
    assert found.calls == 3
    assert found.cost < 4 * 8.0


def test_where_nothing_is_right_everything_is_with_the_dearest():
    works, cost = np.zeros((2, 3), bool), np.tile([1.0, 2.0, 3.0], (2, 1))
    for found in (
        exhaustive_allocation(search_of(works, cost)),
        grouped_allocation_search(search_of(works, cost), np.zeros(2), groups_by_price(cost)),
    ):
        assert found.columns == (2, 2)
        assert not found.right


def test_wrong_shapes_are_named():
    works, cost = np.ones((2, 3), bool), np.ones((2, 3))
    with pytest.raises(ShapeError, match="difficulty"):
        grouped_allocation_search(search_of(works, cost), np.zeros(3), [[0], [1], [2]])
    with pytest.raises(ConfigError, match="thresholds"):
        grouped_allocation_search(search_of(works, cost), np.zeros(2), [[0], [1, 2]])
