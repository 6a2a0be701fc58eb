"""The proof of system 63 on worlds whose answer is known: it passes where it should and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.catalogue import catalogue
from polyroute.gateway.brain import objective_for
from polyroute.proofs import reasoning
from polyroute.proofs.reasoning import best_fixed, halves, plan, prove, read, shuffled, token_price
from polyroute.recipes.reasoning import BUDGETS, MODES

MODEL = "qwen2.5-coder-0.5b"


def recorded(chances: dict[str, dict[str, list[float]]], n: int = 40, seed: int = 0) -> dict:
    """chances: family -> mode -> probability of a right answer at each budget. `steps` uses its budget up."""
    rng = np.random.default_rng(seed)
    items = {}
    for family, modes in chances.items():
        for i in range(n):
            items[f"{family}-2-{i}"] = {
                mode: [[float(rng.random() < p), (5.0 if mode == "answer" else 0.9 * b)]
                       for p, b in zip(modes[mode], BUDGETS, strict=True)]
                for mode in MODES
            }  # fmt: skip
    return {"model": MODEL, "budgets": list(BUDGETS), "seed": 63, "per_level": n, "items": items}


THOUGHT_HELPS_ONE = {
    "arithmetic": {"answer": [0.9] * 5, "steps": [0.3, 0.7, 0.9, 0.9, 0.9]},
    "word-problem": {"answer": [0.1] * 5, "steps": [0.05, 0.15, 0.3, 0.7, 0.9]},
}
NOTHING_DIFFERS = {
    "arithmetic": dict.fromkeys(MODES, [1.0] * 5),
    "word-problem": dict.fromkeys(MODES, [0.0] * 5),
}


@pytest.fixture
def world(monkeypatch):
    def use(chances: dict, n: int = 40) -> None:
        monkeypatch.setattr(reasoning, "recorded_budgets", lambda: recorded(chances, n))

    return use


def test_it_passes_where_only_one_family_needs_thought(world):
    world(THOUGHT_HELPS_ONE)
    proof = prove(0)
    assert proof.passed, proof.as_json()
    assert proof.effects[1].value > 30
    assert proof.falsifier.high < -5


def test_it_fails_where_nothing_differs(world):
    world(NOTHING_DIFFERS)
    proof = prove(0)
    assert proof.falsifier.holds  # mixed-up budgets are as good, so nothing is shown
    assert not proof.passed


def test_it_fails_where_every_family_needs_the_longest_thought(world):
    world(dict.fromkeys(THOUGHT_HELPS_ONE, THOUGHT_HELPS_ONE["word-problem"]))
    assert not prove(0).effects[1].holds  # nothing to save


def test_a_plan_takes_the_cheap_mode_where_it_is_as_good():
    table = read(recorded(THOUGHT_HELPS_ONE, n=300))
    chosen = plan(table, 1e-4)
    assert chosen["arithmetic"][0] == list(MODES).index("answer")
    assert chosen["word-problem"] == (list(MODES).index("steps"), 4)
    assert {mode for mode, _ in plan(table, 1.0).values()} == {0}  # when tokens are all that counts


def test_the_fixed_arm_is_the_most_accurate_and_of_equals_the_cheapest():
    table = read(recorded(THOUGHT_HELPS_ONE, n=300))
    assert best_fixed(table) == (1, 4)
    same = table._replace(score=np.ones_like(table.score))
    assert best_fixed(same) == (0, 0)
    assert best_fixed(table, 1.0)[0] == 0  # which costs the same at every budget


def test_shuffling_keeps_each_items_scores_and_loses_their_budgets():
    table = read(recorded(THOUGHT_HELPS_ONE, n=300))
    broken = shuffled(table, np.random.default_rng(0))
    assert (broken.score.sum(axis=2) == table.score.sum(axis=2)).all()
    assert (broken.tokens == table.tokens).all()
    assert np.ptp(table.score[:, 1].mean(axis=0)) > 0.5
    assert np.ptp(broken.score[:, 1].mean(axis=0)) < 0.1


def test_each_family_is_halved():
    family = np.array(["a"] * 7 + ["b"] * 4)
    first = halves(family, np.random.default_rng(0))
    assert (first[:7].sum(), first[7:].sum()) == (3, 2)
    assert (halves(family, np.random.default_rng(1)) != first).any()


def test_a_token_costs_what_auto_says():
    pool = [model.candidate() for model in catalogue().embedded()]
    per_usd = -objective_for(0.3, pool).weights["cost"]
    own = next(c for c in pool if c.id == MODEL)
    assert token_price(MODEL) == pytest.approx(per_usd * own.profile.price_out / 1e6)
