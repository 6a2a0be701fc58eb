"""Answers as numbers: what they come down to, sums worked out again, and who agrees with whom."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.signals.answer import (
    DIM,
    KINDS,
    NAMES,
    agreement,
    answer_features,
    check_sums,
    final,
    kind_of,
    options,
    parses,
    worked_out,
)  # fmt: skip

CODE = "Here it is:\n```python\ndef f(x):\n    return x + 1\n```\nDone."


def value(name, query, answer, **more):
    return answer_features(query, answer, **more)[NAMES.index(name)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("C", "C"), (" b)\n", "B"), ("Answer: D.", "D"), ("The answer is A", None), ("7 + 5 = 12\n#### 12", "12"),
     ("He pays $1,200.50", "1200.5"), ("minus -3", "-3"), (CODE, None), ("", None), ("no numbers here", None)],
)  # fmt: skip
def test_what_an_answer_comes_down_to(answer, expected):
    assert final(answer) == expected


def test_every_kind_is_told_apart():
    two, four = "Who?\nA) he\nB) she", "Which?\nA) 1\nB) 2\nC) 3\nD) 4"
    asked = [(two, "A"), (four, "A"), ("write f", CODE), ("how many?", "12 apples"), ("tell me", "A story.")]
    assert [KINDS[kind_of(query, answer)] for query, answer in asked] == list(KINDS)
    assert (options(two), options(four), options("none")) == (2, 4, 0)
    for query, answer in asked:
        found = answer_features(query, answer)
        assert found.shape == (DIM,)
        assert found[: len(KINDS)].sum() == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3 * 4", 12.0), ("(10-4)/3", 2.0), ("$2 x 3", 6.0), ("-(2+3)*2", -10.0), ("1/0", None), ("7", None),
     ("2**9999999", None), ("__import__('os')", None), ("1,000 + 1", 1001.0)],
)  # fmt: skip
def test_sums_are_worked_out_and_nothing_else_is(text, expected):
    assert worked_out(text) == expected


def test_stated_sums_are_checked():
    assert check_sums("5 * 2 = <<5*2=10>>10, then 10 + 3 = 13 and 4 * 4 = 17") == (3, 1)  # said and annotated: twice
    assert check_sums("100 / 3 = 33.33") == (1, 0)  # rounding is no mistake
    assert value("any_sum_wrong", "q", "4 * 4 = 17, so 17") == 1.0


def test_numbers_should_come_from_the_query():
    query = "Ann has 3 bags of 14 nuts and eats 5. How many are left?"
    good = "3 * 14 = <<3*14=42>>42\n42 - 5 = <<42-5=37>>37\n#### 37"
    assert value("numbers_from_nowhere", query, good) == 0
    assert value("any_unused", query, good) == 0
    assert value("ends_in_last_sum", query, good) == 1
    odd = "3 * 99 = <<3*99=297>>297\n#### 297"
    assert value("any_nowhere", query, odd) == 1
    assert value("query_numbers_unused", query, odd) == pytest.approx(0.6)


def test_code_is_parsed_and_not_run():
    assert parses("def f():\n    raise SystemExit")
    assert not parses("def f(:")
    assert value("code_parses", "q", CODE) == 1
    assert value("code_parses", "q", CODE.replace("return", "retur n")) == 0


def test_logprobs_count_where_there_are_some():
    assert value("has_logprobs", "q", "A") == 0
    assert value("mean_logprob", "q", "A", logprobs=[-1.0, -3.0]) == -2.0
    assert value("min_logprob", "q", "A", logprobs=[-1.0, -np.inf]) == -20.0


def test_agreement_of_finals_and_of_texts():
    same = agreement(["C", "c)", "D", CODE, CODE + " Bye.", "A story of an old man.", ""])
    assert (same == same.T).all()
    assert np.diag(same).sum() == 0
    assert same[0, 1] == 1.0
    assert same[0, 2] == 0.0
    assert same[3, 4] == 1.0  # prose around code does not count
    assert same[0, 3] == 0.0
    assert same[3, 5] < 0.2


@pytest.mark.parametrize(
    "text", ["", "\ud800", "=" * 30_000, "1+" * 15_000, "((((" * 9_000, "A" * 100_000, "```\n" * 999]
)
def test_no_text_is_too_odd(text):
    assert np.isfinite(answer_features(text, text)).all()
    assert np.isfinite(agreement([text, "C", text])).all()
