"""Budgets of thought: the curve, where it stops paying, and how the outcomes were recorded."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from polyroute.data.probes import FAMILIES, LEVELS, Probe, probes
from polyroute.errors import OutcomesError, ShapeError
from polyroute.recipes import reasoning
from polyroute.recipes.reasoning import BUDGETS, EARLIER, FORCE, MODES, BudgetCurve, ReasoningArm, items, record_item
from polyroute.types import Profile

TOKENS = np.array([8.0, 16, 32, 64, 128, 256])


@pytest.mark.parametrize(("start", "end", "kappa"), [(0.1, 0.8, 30.0), (0.0, 1.0, 100.0), (0.6, 0.3, 20.0)])
def test_a_curve_is_recovered(start, end, kappa):
    curve = BudgetCurve().fit(TOKENS, end - (end - start) * np.exp(-TOKENS / kappa))
    assert (curve.start_, curve.end_) == (pytest.approx(start, abs=0.03), pytest.approx(end, abs=0.01))
    assert curve.kappa_ == pytest.approx(kappa, rel=0.05)
    assert curve.quality(TOKENS) == pytest.approx(end - (end - start) * np.exp(-TOKENS / kappa), abs=0.01)


def test_a_curve_is_recovered_through_noise():
    rng = np.random.default_rng(0)
    found = [BudgetCurve().fit(TOKENS, rng.binomial(200, 0.8 - 0.7 * np.exp(-TOKENS / 40)) / 200) for _ in range(20)]
    assert np.median([curve.end_ for curve in found]) == pytest.approx(0.8, abs=0.03)
    assert np.median([curve.kappa_ for curve in found]) == pytest.approx(40, rel=0.2)


def test_scores_that_do_not_rise_give_a_flat_curve():
    curve = BudgetCurve().fit(TOKENS, np.full(6, 0.4))
    assert curve.quality(TOKENS) == pytest.approx(0.4)
    assert curve.optimal(1e-6) == 8.0  # nothing to buy


def test_quality_stays_in_its_range():
    curve = BudgetCurve().fit(TOKENS, np.array([0, 0, 0.9, 1, 1, 1.0]))
    assert ((curve.quality(np.arange(1000)) >= 0) & (curve.quality(np.arange(1000)) <= 1)).all()


def test_the_optimal_budget_is_where_the_slope_meets_the_price():
    curve = BudgetCurve().fit(TOKENS, 0.9 - 0.8 * np.exp(-TOKENS / 50))
    price = 0.8 / 50 * np.exp(-100 / 50)  # the slope at 100 tokens
    best = curve.optimal(price)
    assert best == pytest.approx(100, rel=0.03)
    step = (curve.quality(np.array(best + 0.5)) - curve.quality(np.array(best - 0.5))) / 1.0
    assert step == pytest.approx(price, rel=0.01)
    grid = np.linspace(8, 256, 20_000)
    assert grid[(curve.quality(grid) - price * grid).argmax()] == pytest.approx(best, abs=0.1)


def test_prices_at_both_ends_stay_within_the_budgets_seen():
    curve = BudgetCurve().fit(TOKENS, 0.9 - 0.8 * np.exp(-TOKENS / 50))
    assert curve.optimal(0.0) == 256
    assert curve.optimal(1e-9) == 256
    assert curve.optimal(1.0) == 8
    budgets = [curve.optimal(price) for price in np.geomspace(1e-6, 1, 50)]
    assert budgets == sorted(budgets, reverse=True)


def test_too_little_to_fit_is_an_error():
    with pytest.raises(OutcomesError, match="3 or more"):
        BudgetCurve().fit(TOKENS[:2], np.zeros(2))
    with pytest.raises(OutcomesError):
        BudgetCurve().fit(TOKENS[:3], np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ShapeError):
        BudgetCurve().fit(TOKENS, np.zeros(3))


def test_an_arm_is_a_candidate_of_its_own():
    arms = [ReasoningArm("m", mode, budget) for mode in MODES for budget in BUDGETS]
    assert len({arm.candidate().id for arm in arms}) == len(arms)
    assert arms[0].candidate(Profile(price_out=3.0)).profile.price_out == 3.0


FEW = dict.fromkeys(FAMILIES, 2)


def test_items_are_drawn_again_from_their_seed():
    assert [item.prompt for item in items(per_level=FEW)] == [item.prompt for item in items(per_level=FEW)]
    assert [item.prompt for item in items(1, FEW)] != [item.prompt for item in items(2, FEW)]


def test_no_question_is_asked_twice_or_again():
    asked = [item.prompt for item in items()]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & {probe.prompt for probe in probes(4, np.random.default_rng(EARLIER))}


def test_items_cover_families_and_levels_in_their_proportion_wherever_the_list_is_cut():
    found = items(per_level={"program": 8, "word-problem": 4})
    assert {item.id.rsplit("-", 1)[0] for item in found} == {
        f"{family}-{level}" for family in ("program", "word-problem") for level in range(1, LEVELS + 1)
    }
    half = Counter(item.id.rsplit("-", 2)[0] for item in found[: len(found) // 2])
    assert half["program"] == pytest.approx(2 * half["word-problem"], abs=3)


class Server:
    """Answers like a model that writes one token a word. It says the answer at word `at`."""

    def __init__(self, words: int, at: int):
        self.text = " ".join("so" if i != at else "42" for i in range(words))
        self.asked: list[tuple[list[dict[str, str]], int]] = []

    def __call__(self, url: str, model: str, messages: list[dict[str, str]], limit: int) -> dict:
        self.asked.append((messages, limit))
        text = "forced 7" if messages[-1]["content"] == FORCE else self.text
        words = text.split(" ")[:limit]
        content = [{"token": word if i == 0 else f" {word}"} for i, word in enumerate(words)]
        cut = len(words) < len(text.split(" "))
        return {"message": {"content": " ".join(words)}, "logprobs": {"content": content},
                "finish_reason": "length" if cut else "stop"}  # fmt: skip


PROBE = Probe("arithmetic-2-0", "math", 2, "What is 6 * 7?", "42", "number")


def test_an_answer_within_the_budget_is_taken_and_a_cut_one_is_forced(monkeypatch):
    server = Server(words=60, at=30)
    monkeypatch.setattr(reasoning, "ask", server)
    rows = record_item("", "m", PROBE)
    whole = [[1.0, 60]] * sum(budget >= 60 for budget in BUDGETS)
    assert rows["answer"] == [[0.0, 16 + 2], *whole]  # forced to 7, whole
    forced = [messages for messages, _ in server.asked if len(messages) == 3]
    assert [len(m[1]["content"].split()) for m in forced] == [16, 16]  # it sees what it thought so far
    assert server.asked[0][0][0]["content"] == PROBE.prompt
    assert all(len(rows[mode]) == len(BUDGETS) for mode in MODES)


def test_an_answer_cut_at_the_largest_budget_is_forced_too(monkeypatch):
    monkeypatch.setattr(reasoning, "ask", Server(words=500, at=0))
    assert record_item("", "m", PROBE)["steps"][-1] == [0.0, BUDGETS[-1] + 2]


@pytest.mark.parametrize("which", ["earlier", "fresh"])
def test_the_recorded_outcomes_are_whole(which):
    recorded = reasoning.recorded_budgets(which)
    budgets = recorded["budgets"]
    assert set(BUDGETS) <= set(budgets)
    counts = Counter(name.rsplit("-", 2)[0] for name in recorded["items"])
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 10
    for rows in recorded["items"].values():
        assert set(rows) == set(MODES)
        for row in rows.values():
            assert [score in (0.0, 1.0) for score, _ in row] == [True] * len(budgets)
            assert all(used <= budget + 16 for (_, used), budget in zip(row, budgets, strict=True))
    assert json.dumps(recorded)


def test_the_fresh_recording_is_of_the_questions_said():
    recorded = reasoning.recorded_budgets("fresh")
    known = [item.id for item in items(recorded["seed"])]
    assert list(recorded["items"]) == known[: len(recorded["items"])]  # cut at the end, if at all
