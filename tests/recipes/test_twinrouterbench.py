"""Tiers for agent steps: the published file scored, and the rule that stays where its cache is."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.formats.twinrouterbench import StepTable
from polyroute.offline.steps import StepCost, step_tiers
from polyroute.recipes.twinrouterbench import score


def table():
    gold = np.array([0, 3, 0, 1])
    prompt = np.array([1000.0, 2000.0, 3000.0, 500.0])
    shared = np.array([0.0, 1000.0, 2000.0, 0.0])
    run = np.array(["a", "a", "a", "b"])
    return StepTable(list("wxyz"), np.array(["t"] * 4), run, np.array([1, 2, 3, 1]), gold, [[]] * 4, prompt, shared,
                     np.full(4, 100.0))  # fmt: skip


def test_gold_passes_and_saves_and_high_only_passes():
    gold, high = score(table(), table().gold), score(table(), np.full(4, 3))
    assert gold[:3] == (1.0, 1.0, 1.0)
    assert gold.saving > 0.4
    assert high[:4] == (1.0, 0.25, 1.0, pytest.approx(0.0))
    failed = score(table(), np.array([0, 2, 0, 1]))
    assert failed.run_pass == 0.25
    assert failed.saving < gold.saving
    assert score(table(), np.array([0, -1, 0, 1])).row_pass == 0.75


def test_the_cheap_tier_is_left_only_for_steps_that_need_it():
    passes = np.array([[0.99, 0.99, 0.99, 1.0], [0.1, 0.2, 0.3, 1.0], [0.99, 0.99, 0.99, 1.0]])
    sizes = np.array([2000.0, 2500.0, 3000.0]), np.array([0.0, 2000.0, 2500.0]), np.full(3, 200.0)
    assert step_tiers(passes, *sizes, StepCost(), penalty=0.5).tolist() == [0, 3, 0]


def test_a_warm_cache_holds_the_run_on_its_tier():
    passes = np.tile([[0.2, 0.3, 0.3, 1.0], [0.9, 0.9, 0.985, 1.0]], (4, 1))
    prompt = 60_000.0 + 300 * np.arange(8)
    sizes = prompt, np.concatenate([[0.0], prompt[:-1]]), np.full(8, 20.0)
    prices = np.tile([[1.0, 0.1, 1.25, 5.0]], (4, 1)) * np.array([[1.0], [1.5], [2.0], [2.5]])
    aware = step_tiers(passes, *sizes, StepCost(prices), penalty=2.0)
    assert aware.tolist() == [3] * 8
    blind = step_tiers(passes, *sizes, StepCost(prices, cached=False), penalty=2.0)
    assert len(set(blind.tolist())) > 1
    assert StepCost(prices).price(aware, *sizes).sum() < StepCost(prices).price(blind, *sizes).sum()
