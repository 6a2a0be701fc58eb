"""Sentences of an answer against windows of its sources."""

from __future__ import annotations

import pytest

from polyroute.errors import ConfigError
from polyroute.signals.grounding import Depth, GroundingVerifier, choose_depth, sentences, windows_of, within

SOURCE = (
    "The town lies on a river. Records say the mill of Orlen counted 731 tonnes in 1948. "
    "It was rebuilt later. In winter the road to Kessin is closed. Prices rose by 3.5 percent."
)


def support(answer, **options):
    return [round(span.support, 2) for span in GroundingVerifier(**options).check(answer, [SOURCE])]


def test_sentences_end_where_they_end():
    text = "It costs 3.5 euro. Really?\nYes!  --- "
    assert [text[a:b].strip() for a, b in sentences(text)] == ["It costs 3.5 euro.", "Really?", "Yes!"]
    assert sentences("") == []


@pytest.mark.parametrize(
    ("claim", "grounded"),
    [
        ("In 1948 the mill of Orlen counts 731 tonnes.", True),
        ("In 1948 the mill of Orlen counts 999 tonnes.", False),  # another number
        ("In 1948 the mill of Tarvik counts 731 tonnes.", False),  # another name
        ("The emperor sold his fleet.", False),  # nothing of the kind
        ("Winter closes the road to Kessin.", True),
        ("Prices rose by 3.5 percent.", True),
        ("Prices rose by 35 percent.", False),
    ],
)
def test_claims_are_told_apart(claim, grounded):
    assert GroundingVerifier().faithful(claim, [SOURCE]) is grounded


def test_the_falsifier_takes_any_number():
    assert GroundingVerifier(penalty=1.0).faithful("In 1948 the mill of Orlen counts 999 tonnes.", [SOURCE])


def test_a_span_says_where_and_what_is_missing():
    answer = "Prices rose by 3.5 percent. The mill of Tarvik counted 5 tonnes."
    good, bad = GroundingVerifier().check(answer, [SOURCE])
    assert answer[bad.start : bad.end].strip() == "The mill of Tarvik counted 5 tonnes."
    assert bad.missing == ("5", "Tarvik")
    assert good.support > 0.9 > bad.support


def test_what_lies_behind_the_limit_supports_nothing():
    claim = "Prices rose by 3.5 percent."
    assert support(claim) == [1.0]
    assert support(claim, limit=60)[0] < 0.5
    assert within(["abc", "def"], 4) == ["abc", "d"]
    assert GroundingVerifier().faithful("", [SOURCE])
    assert not GroundingVerifier().faithful("A claim.", [])


def test_windows_cover_everything():
    assert len(windows_of([SOURCE], 3)) == 3
    assert len(windows_of(["One sentence only here."], 3)) == 1
    assert windows_of([""]) == []


def test_the_deepest_check_within_the_budget():
    depths = [Depth("none", 0, 0, 0.1), Depth("quick", 1, 0.001, 0.6), Depth("full", 2, 0.01, 0.9)]
    assert [choose_depth(depths, 1000, b).name for b in (0, 2, 11.9, 12)] == ["none", "quick", "quick", "full"]
    assert choose_depth(depths[1:], 1000, 1) is None


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="penalty"):
        GroundingVerifier(penalty=2)
    with pytest.raises(ConfigError, match="window"):
        GroundingVerifier(window=0)
