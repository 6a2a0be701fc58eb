from math import comb

import numpy as np
import pytest
from scipy.stats import chisquare

from polyroute.errors import ConfigError
from polyroute.kernels.choices import draw, least_loaded, owners, power_of_d, ring_hash, ring_of

DRAWS = 12_000


def test_the_least_loaded_of_those_given_wins_and_ties_go_to_the_first():
    assert least_loaded([5, 1, 3, 1], [0, 2]) == 2
    assert least_loaded([5, 1, 3, 1], [3, 1, 0]) == 3


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_rank_r_is_joined_as_often_as_counting_says(d):
    # the r-th shortest of m is joined when the other d - 1 looks are among the longer ones
    m, rng = 5, np.random.default_rng(d)
    load = [30, 10, 50, 20, 40]
    ranks = np.argsort(np.argsort(load))
    count = np.bincount([ranks[power_of_d(load, rng, d=d)] for _ in range(DRAWS)], minlength=m)
    chance = np.array([comb(m - 1 - r, d - 1) / comb(m, d) for r in range(m)])
    assert count[chance == 0].sum() == 0
    if d < m:
        assert chisquare(count[chance > 0], DRAWS * chance[chance > 0]).pvalue > 0.001
    else:
        assert count[0] == DRAWS


@pytest.mark.parametrize("d", [2, 3, 7])
def test_ties_are_broken_evenly(d):
    rng = np.random.default_rng(0)
    count = np.bincount([power_of_d([4, 4, 4], rng, d=d) for _ in range(DRAWS)], minlength=3)
    assert chisquare(count).pvalue > 0.001


def test_draws_are_different_columns_in_every_order():
    rng = np.random.default_rng(1)
    seen = [tuple(draw(3, 2, rng)) for _ in range(DRAWS)]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    assert chisquare([seen.count(pair) for pair in pairs]).pvalue > 0.001
    assert sorted(draw(3, 9, rng)) == [0, 1, 2]


def test_two_looks_keep_the_fullest_queue_far_below_one_look():
    def fullest(d):
        rng, load = np.random.default_rng(7), [0] * 500
        for _ in range(500):
            load[power_of_d(load, rng, d=d)] += 1
        return max(load)

    assert fullest(2) <= 4 < fullest(1)  # about log log n / log 2 + 1 against log n / log log n


def test_no_queue_or_no_look_is_refused():
    with pytest.raises(ConfigError, match="load: expected the load of at least one column"):
        power_of_d([], np.random.default_rng(0))
    with pytest.raises(ConfigError, match="d: expected 1 or more"):
        power_of_d([1, 2], np.random.default_rng(0), d=0)


def test_a_hash_is_the_same_in_every_process():
    assert ring_hash("a") == 11494053157100649449
    assert ring_hash(("a", 1)) != ring_hash(("a", 2))
    assert ring_hash("a", 1) != ring_hash("a", 2)


def test_a_ring_gives_each_name_its_share_and_moves_only_the_keys_of_one_that_goes():
    names = [f"n{k}" for k in range(8)]
    ring, keys = ring_of(names), [ring_hash(k) for k in range(4000)]
    before = [owners(ring, key)[0] for key in keys]
    share = np.array([before.count(name) for name in names]) / len(keys)
    assert share.min() > 0.06
    assert share.max() < 0.22
    smaller = ring_of([name for name in names if name != "n3"])
    after = [owners(smaller, key)[0] for key in keys]
    assert all(a == b for a, b in zip(before, after, strict=True) if a != "n3")


def test_owners_are_different_and_no_more_than_there_are():
    ring = ring_of(["a", "b", "c"], points=4)
    for key in range(0, 2**64, 2**58):
        assert sorted(owners(ring, key, 3)) == ["a", "b", "c"]
        assert owners(ring, key, 2) == owners(ring, key, 5)[:2]
    assert owners([], 1) == []
    with pytest.raises(ConfigError):
        ring_of(["a"], points=0)
