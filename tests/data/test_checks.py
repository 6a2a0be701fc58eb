from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.checks import guess, refuse_odd_costs, same_text
from polyroute.data.columns import Columns
from polyroute.errors import OutcomesError
from polyroute.types import Candidate, Profile

COLUMNS = Columns("t.parquet", None)  # type: ignore[arg-type]
RNG = np.random.default_rng(0)
READ, WROTE = RNG.integers(20, 900, size=(40, 1)) * 1.0, RNG.integers(1, 500, size=(40, 2)) * 1.0
POOL = [Candidate("a", profile=Profile(0.1, 0.4)), Candidate("b", profile=Profile(10.0, 30.0))]
COST = (READ * [0.1, 10.0] + WROTE * [0.4, 30.0]) / 1e6


def test_texts_that_differ_in_form_only_are_one():
    texts = ["What is 2+2?", "what is  2 + 2", "What is 3+2?", "", "   ", "?!", "?!", "ﬁne", "fine"]
    assert same_text(texts).tolist() == [0, 0, 1, -1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("factor", [1.0, 0.1, 7.1])  # as stated, discounted, in yuan: near enough to be wondered about
def test_costs_near_what_prices_say_pass(factor):
    refuse_odd_costs(COLUMNS, factor * COST, READ, WROTE, POOL)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(100.0, "in cents"), (1e3, "thousandths"), (1e6, "millionths of a USD"), (1e-3, r"0\.001 times that\.")],
)
def test_costs_far_from_what_prices_say_are_refused_and_the_unit_is_guessed(factor, unit):
    with pytest.raises(OutcomesError, match=f"t.parquet: column 'cost_usd': expected USD, by prices.*{unit}"):
        refuse_odd_costs(COLUMNS, factor * COST, READ, WROTE, POOL)


@pytest.mark.parametrize("wrote", [WROTE, np.full((40, 2), np.nan)], ids=["counted", "not counted"])
@pytest.mark.parametrize("factor", [1.0, 100.0, 1e6, 1e-9])
def test_without_prices_only_absurd_costs_are_refused(factor, wrote):
    pool = [Candidate("a"), Candidate("b")]
    if factor in (1.0, 100.0):  # hundred times dearer models do exist
        refuse_odd_costs(COLUMNS, factor * COST, READ, wrote, pool)
    else:
        with pytest.raises(OutcomesError, match=r"USD per million tokens.*--any-cost"):
            refuse_odd_costs(COLUMNS, factor * COST, READ, wrote, pool)


def test_free_models_and_few_costs_say_nothing():
    free = np.where([[True, False]], 0.0, COST)
    refuse_odd_costs(COLUMNS, free, READ, WROTE, POOL)
    refuse_odd_costs(COLUMNS, np.zeros_like(COST), READ, WROTE, POOL)
    refuse_odd_costs(COLUMNS, 1e6 * COST[:4], READ[:4], WROTE[:4], POOL)


def test_a_ratio_between_units_names_none():
    assert guess(31.0) == guess(1e-4) == guess(1e9) == ""
