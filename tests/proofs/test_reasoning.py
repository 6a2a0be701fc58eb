"""The proof of system 63 on worlds whose answer is known: it passes where it should and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.catalogue import catalogue
from polyroute.gateway.choice import objective_for
from polyroute.proofs import reasoning
from polyroute.proofs.reasoning import (
    best_fixed,
    effect_within_kinds,
    halves,
    misplaced,
    over_kinds,
    plan,
    prove,
    read,
    token_price,
)
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
    return {"model": MODEL, "budgets": list(BUDGETS), "seed": 63, "items": items}


MODES_DIFFER = {
    "arithmetic": {"answer": [0.3] * 3, "steps": [0.3] * 3},
    "everyday": {"answer": [0.9] * 3, "steps": [0.5] * 3},
    "program": {"answer": [0.1] * 3, "steps": [0.6] * 3},
    "word-problem": {"answer": [0.1] * 3, "steps": [0.1, 0.3, 0.8]},
}
NOTHING_DIFFERS = {name: dict.fromkeys(MODES, [p] * 3) for name, p in (("arithmetic", 0.3), ("everyday", 0.8))}


@pytest.fixture
def world(monkeypatch):
    def use(chances: dict) -> None:
        monkeypatch.setattr(
            reasoning, "recorded_budgets", lambda which: recorded(chances, seed=int(which == "fresh"))
        )  # fmt: skip

    return use


def test_it_passes_where_kinds_need_different_modes(world):
    world(MODES_DIFFER)
    proof = prove(0)
    assert proof.passed, proof.as_json()
    assert proof.effects[0].value > 5
    assert proof.falsifier.high < 0


def test_it_fails_where_nothing_differs(world):
    world(NOTHING_DIFFERS)
    assert not prove(0).passed


def test_it_fails_where_every_kind_needs_the_same(world):
    world(dict.fromkeys(MODES_DIFFER, MODES_DIFFER["word-problem"]))
    assert not prove(0).passed


def test_a_plan_takes_for_each_kind_the_arm_worth_most():
    table = read(recorded(MODES_DIFFER, n=300))
    fixed = best_fixed(table, 1e-4)
    chosen = plan(table, 1e-4, fixed)
    answer, steps = list(MODES).index("answer"), list(MODES).index("steps")
    assert fixed == (steps, 2)
    assert chosen["everyday"][0] == answer
    assert chosen["program"][0] == steps
    assert chosen["word-problem"] == (steps, 2)
    assert {mode for mode, _ in plan(table, 1.0, (answer, 0)).values()} == {answer}  # when tokens are all that counts


def test_few_questions_leave_the_fixed_arm():
    table = read(recorded({"program": {"answer": [0.0] * 3, "steps": [1.0] * 3}}, n=40))
    assert plan(table, 1e-4, (0, 0)) == {"program": (1, 0)}
    assert plan(table.take(np.arange(1)), 1e-4, (0, 0), caution=3.0) == {"program": (0, 0)}
    assert plan(table, 1e-4, (1, 2), caution=1e9) == {"program": (1, 2)}


def test_the_fixed_arm_counts_every_kind_alike():
    table = read(recorded(MODES_DIFFER, n=300))
    most = table.take(np.flatnonzero((table.family == "everyday") | (np.arange(len(table.family)) % 10 == 0)))
    assert best_fixed(table, 1e-4) == best_fixed(most, 1e-4) == (1, 2)
    assert best_fixed(table, 1.0)[0] == 0
    assert over_kinds(np.array([1.0, 1, 1, 0]), np.array(["a", "a", "a", "b"])) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_misplaced_plan_is_another_kinds(seed):
    plans = {name: (i, 0) for i, name in enumerate("abcde")}
    moved = misplaced(plans, np.random.default_rng(seed))
    assert sorted(moved.values()) == sorted(plans.values())
    assert all(moved[name] != plans[name] for name in plans)


def test_the_interval_is_that_of_a_mean_of_means():
    rng = np.random.default_rng(0)
    family = np.repeat(["a", "b"], [400, 100])
    values = np.where(family == "a", 0.0, 1.0) + rng.normal(size=500)
    effect = effect_within_kinds("x", values, family, rng)
    assert effect.value == pytest.approx(100 * over_kinds(values, family))
    expected = 100 * 1.96 * 0.5 * np.sqrt(1 / 400 + 1 / 100)
    assert (effect.high - effect.low) / 2 == pytest.approx(expected, rel=0.15)


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
