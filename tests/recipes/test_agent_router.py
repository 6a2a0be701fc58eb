"""AgentRouter: answers brought to one form, a vote that follows learned weights, one agent before anyone answered."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.recipes.agent_router import AgentRouter, choice_letter, coded, short_answer
from tests.routers.tables import table_of
from tests.routers.test_soft_targets import panel


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("A)", "A"), ("(C) because", "C"), ("The answer is D.", "D"), ("B\n", "B"), ("", None), ("Yes", None),
     ("DNA", None)],
)  # fmt: skip
def test_the_letter_of_a_choice(text, letter):
    assert choice_letter(text) == letter


def test_free_answers_that_mean_the_same_are_the_same():
    assert short_answer("The Eiffel Tower.") == short_answer("eiffel  tower") == "eiffel tower"
    assert short_answer("...") is None


def test_codes_are_equal_where_answers_are():
    codes = coded([["x", "y", "x", None], [None, None, None, None]])
    assert codes[0, 0] == codes[0, 2] != codes[0, 1]
    assert codes[0, 3] == -1
    assert codes[1].tolist() == [-1] * 4


def test_the_vote_beats_its_best_member_and_an_equal_vote():
    said, right = panel(600, np.random.default_rng(1))
    words = [[f"option {a}" for a in row] for row in said.tolist()]
    table = table_of(np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32), right)
    train, test = table.take(np.arange(400)), table.take(np.arange(400, 600))
    router = AgentRouter(agree=1e-4).fit(train, words[:400])
    voted = router.vote(test.queries, words[400:])
    score = np.mean([y[row.index(v)] for y, row, v in zip(right[400:], words[400:], voted, strict=True)])
    assert score > right[400:].mean(axis=0).max() + 0.1
    assert (router.pick(test.queries) == 0).all()
    assert router.vote([], []) == []
    assert router.vote(test.queries[:1], [[None] * 4]) == [None]
    with pytest.raises(ShapeError, match="answers"):
        router.vote(test.queries, words[:3])
