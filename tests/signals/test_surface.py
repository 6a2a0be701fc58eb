"""Surface features: closed forms on small texts, bounds on any text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.signals.surface import DIM, KINDS, LENGTHS, NAMES, level, surface

ODD = ["", " ", "\n\n", "\0", "\ud800", "🎉" * 50, "a" * 100_000, "?", "。", "\\", "(", "_" * 40, "\u202eabc", "½", "ﬀ"]


def feature(text: str, name: str) -> float:
    return float(surface(text)[NAMES.index(name)])


def test_names_are_unique_and_count_the_features():
    assert len(set(NAMES)) == DIM == surface("x").shape[0]
    assert surface("x").dtype == np.float32


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts_stay_in_bounds(text):
    values = surface(text)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_any_text_stays_in_bounds(text):
    values = surface(text)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=100))
def test_shares_are_a_unit_vector_whatever_the_script(text):
    shares = surface(text)[: len(KINDS)]
    assert shares @ shares == pytest.approx(1.0, abs=1e-5)


def test_the_empty_text_has_no_features():
    assert not surface("").any()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("abc", "lower"),
        ("ABC", "upper"),
        ("123", "digit"),
        ("Ωμέγα"[:1], "greek"),
        ("привет", "cyrillic"),
        ("你好", "han"),
        ("かな", "kana"),
        ("한국", "hangul"),
        ("שלום", "right_to_left"),
        ("مرحبا", "right_to_left"),
        ("नमस्ते", "indic"),
        ("éü", "latin"),
        ("🎉🎊", "emoji"),
        ("∑∫", "symbol"),
        ("+-*", "arithmetic"),
        ("\x00\x01", "mark"),
    ],
)
def test_a_text_of_one_kind_is_all_of_that_kind(text, kind):
    assert feature(text, f"share_{kind}") == pytest.approx(1.0)


def test_a_share_is_the_root_of_the_fraction():
    assert feature("aaa1", "share_digit") == pytest.approx(0.5)


@pytest.mark.parametrize("length", LENGTHS)
def test_length_corners_are_one_at_their_length(length):
    assert feature("x" * length, f"length_{length}") == pytest.approx(1.0, abs=1e-6)


def test_length_corners_sum_to_one_between():
    at = NAMES.index(f"length_{LENGTHS[0]}")
    for length in (1, 33, 100, 777, 3000, 50_000):
        assert surface("x" * length)[at : at + len(LENGTHS)].sum() == pytest.approx(1.0, abs=1e-5)


def test_level_is_logarithmic_and_saturates():
    assert level(0, 10) == 0
    assert level(10, 10) == level(99, 10) == 1
    assert level(3, 15) == pytest.approx(0.5)


def test_words_are_counted_by_their_starts_in_spaced_scripts():
    assert feature("one two three", "words") == pytest.approx(level(3, 600))
    assert feature("один два три", "words") == pytest.approx(level(3, 600))
    assert feature("été naïve", "words") == pytest.approx(level(2, 600))


def test_ideographs_count_half_a_word_each():
    assert feature("法国首都", "words") == pytest.approx(level(2, 600))


def test_options_of_any_common_form_are_counted():
    for form in ("A) x\nB) y\nC) z", "(a) x\n(b) y\n(c) z", "1. x\n2. y\n3. z", "[A] x\n [B] y\n [C] z"):
        assert feature(form, "options") == pytest.approx(level(3, 10)), form
    assert feature("A sentence.\nAnother: one\n1990 was", "options") == 0


def test_numbers_and_their_digits():
    assert feature("12 apples, 3456 pears", "numbers") == pytest.approx(level(2, 40))
    assert feature("12 apples, 3456 pears", "digits_per_number") == pytest.approx(level(3, 6))


def test_code_and_mathematics_show():
    code = "def f(x):\n    # half\n    y = g(x) + 1\n    return y == 2\n```"
    assert feature(code, "calls") == pytest.approx(level(2, 20))
    assert feature(code, "assignments") == pytest.approx(level(2, 10))
    assert feature(code, "spaced_operators") == pytest.approx(level(1, 10))
    assert feature(code, "indented_lines") == pytest.approx(level(3, 30))
    assert feature(code, "fences") == pytest.approx(level(1, 6))
    assert feature("\\frac{a}{\\sqrt b}", "latex") == pytest.approx(level(2, 20))


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("Why? ", {"ends_question", "starts_upper"}),
        ("为什么？", {"ends_question"}),
        ("好。", {"ends_stop"}),
        ("answer:", {"ends_colon", "starts_lower"}),
        ("f(x)", {"ends_bracket", "starts_lower"}),
        ("3 or 4", {"ends_word", "starts_digit"}),
        ("# title.", {"ends_stop", "starts_symbol"}),
        ("   ", set()),
    ],
)
def test_ends_and_starts(text, on):
    assert {n for n in NAMES if n.startswith(("ends_", "starts_")) and feature(text, n)} == on
