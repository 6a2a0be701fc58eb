from itertools import pairwise

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.steps import PRICES, StepCost, episode_bill, lock_labels, tier_scores


def test_a_step_reads_what_it_shares_and_writes_the_rest():
    cost = StepCost()
    usd = cost.price(np.array([3, 3]), np.array([1000.0, 3000.0]), np.array([0.0, 1000.0]), np.array([100.0, np.nan]))
    assert usd == pytest.approx([(6.25 * 1000 + 25 * 100) / 1e6, (0.5 * 1000 + 6.25 * 2000 + 25 * 500) / 1e6])


def test_the_cache_is_cold_after_a_switch_and_after_its_time():
    sizes = np.full(4, 1000.0), np.array([0.0, 1000.0, 1000.0, 1000.0]), np.zeros(4)
    cold, warm = 0.26 * 1000 / 1e6, 0.13 * 1000 / 1e6
    stay = StepCost().price(np.zeros(4, int), *sizes)
    assert stay == pytest.approx([cold, warm, warm, warm])
    switched = StepCost().price(np.array([0, 1, 0, 0]), *sizes)
    assert switched == pytest.approx([cold, 0.3 * 1000 / 1e6, cold, warm])
    late = StepCost().price(np.zeros(4, int), *sizes, np.array([1, 4, 8, 9]))
    assert late == pytest.approx([cold, warm, cold, warm])
    fresh = StepCost(cached=False).price(np.full(4, 3), *sizes)
    assert fresh == pytest.approx(np.full(4, 5.0 * 1000 / 1e6))


def test_alternating_tiers_costs_more_than_staying_high_when_the_context_is_long():
    prompt = 40_000.0 + 500 * np.arange(10)
    shared = np.concatenate([[0.0], prompt[:-1]])
    prices = PRICES.copy()
    output = np.full(10, 20.0)
    high = StepCost(prices).price(np.full(10, 3), prompt, shared, output).sum()
    alternating = StepCost(prices).price(np.array([3, 2] * 5), prompt, shared, output).sum()
    assert alternating > 1.5 * high


def scores(predicted, gold, run, highest=None, usd=None):
    n = len(gold)
    highest = np.full(n, 10.0) if highest is None else highest
    usd = np.choose(np.maximum(predicted, 0), [1.0, 2.0, 4.0, 10.0]) if usd is None else usd
    return tier_scores(np.array(predicted), np.array(gold), np.array(run), usd, highest, np.array(["a"] * n))


def test_always_high_passes_everything_and_saves_nothing():
    gold = np.array([0, 1, 3, 3, 2, 0, 3, 1])
    found = scores(np.full(8, 3), gold, [0, 0, 0, 1, 1, 2, 2, 2])
    assert found[:4] == (1.0, 3 / 8, 1.0, 0.0)
    assert found.combined == pytest.approx(0.5 + 3 / 8 / 4)


def test_the_published_figure_of_always_high_implies_its_share_of_high_steps():
    # 970 steps, combined 54.38: 50 + exact / 4, so 170 of them are labelled high
    gold = np.where(np.arange(970) < 170, 3, 0)
    found = scores(np.full(970, 3), gold, np.arange(970))
    assert 100 * found.combined == pytest.approx(54.38, abs=0.005)


def test_failed_runs_cost_what_they_spent():
    low = scores(np.zeros(4, int), np.full(4, 3), [0, 0, 1, 1])
    assert low[:3] == (0.0, 0.0, 0.0)
    assert low.saving == pytest.approx(-4.0 / 40.0)
    half = scores(np.array([0, 0, 3, 0]), np.array([0, 0, 3, 3]), [0, 0, 1, 1])
    assert half.row_pass == 0.75
    assert half.run_pass == 0.5
    assert half.saving == pytest.approx((9 + 9 - 10 - 1) / 40)


def test_a_step_without_an_answer_fails_its_run_and_costs_nothing():
    found = scores(np.array([-1, 0]), np.array([0, 0]), [0, 0])
    assert found[:3] == (0.5, 0.5, 0.0)
    assert found.saving == pytest.approx(-1.0 / 10.0)


def test_benchmarks_weigh_by_their_steps():
    usd, highest = np.array([5.0, 1.0, 1.0, 1.0]), np.array([10.0, 2.0, 2.0, 2.0])
    name = np.array(["a", "b", "b", "b"])
    found = tier_scores(np.array([3, 3, 3, 3]), np.array([0, 0, 0, 0]), np.arange(4), usd, highest, name)
    assert found.saving == pytest.approx(0.25 * 0.5 + 0.75 * 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_locking_recovers_planted_tiers_in_few_runs(seed):
    needs, calls = np.random.default_rng(seed).integers(0, 4, size=5), []

    def passes(tiers):
        calls.append(tiers)
        return bool((np.array(tiers) >= needs).all())

    found = lock_labels(5, passes, 4)
    assert found.tiers.tolist() == needs.tolist()
    assert found.runs == len(calls) <= 5 * 3 + 1


def test_locking_sees_what_single_probes_miss():
    # two cheap steps in a row break the run, one does not
    def passes(tiers):
        return not any(a == 0 and b == 0 for a, b in pairwise(tiers))

    found = lock_labels(4, passes, 2)
    assert found.tiers.tolist() == [0, 1, 0, 1]
    assert passes(found.tiers.tolist())


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="a run that passes at the highest tier"):
        lock_labels(3, lambda tiers: False, 4)
    with pytest.raises(ShapeError, match="prices"):
        StepCost(np.ones((4, 3)))
    for bad in ({"prices": -np.ones((2, 4))}, {"ttl": 0}):
        with pytest.raises(ConfigError):
            StepCost(**bad)
    with pytest.raises(ConfigError, match="at least one step"):
        scores(np.zeros(0, int), np.zeros(0, int), [])


def test_an_unresolved_episode_costs_its_penalty():
    assert episode_bill(np.array([25.66]), np.arange(100) < 75) == pytest.approx(40.66)
    assert episode_bill(np.array([1.0, 2.0]), np.array([True, False]), penalty=1.0) == 4.0
