from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.routers.wording import BITS, LIMIT, Wording, hashed, learn_wording

WORDS = ["sum", "of", "the", "angles", "who", "won", "cup", "write", "code", "that", "sorts"]


def texts(n=200, seed=0):
    """Two kinds of text with words of their own beside shared ones."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    return [" ".join(rng.choice(WORDS[:6] if k else WORDS[5:], size=12)) for k in kind], kind


def test_a_word_has_one_hash_wherever_it_stands():
    alone = hashed("cup")[0]
    assert list(hashed("won the CUP .")).count(alone) == 1
    assert alone not in hashed("cups cu up")


def test_there_is_a_hash_for_each_word_mark_and_wide_character_and_each_pair():
    assert len(hashed("Is x_1 = 3?")) == 5 + 4
    assert len(hashed("中文字")) == 3 + 2
    assert len(hashed("  \n ")) == 0
    assert (hashed("any words at all") < 1 << BITS).all()


def test_the_order_of_words_tells_by_pairs_only():
    one, other = hashed("write code"), hashed("code write")
    assert set(one[:2]) == set(other[:2])
    assert one[2] != other[2]


@pytest.mark.parametrize("text", ["", "\ud800", "\x00", "a" * (3 * LIMIT), "é" * LIMIT])
def test_any_text_can_be_hashed(text):
    assert hashed(text).ndim == 1


def test_many_texts_are_read_like_each_alone():
    said = [*texts()[0], "", "\ud800 won", "é" * LIMIT, "of the " * LIMIT, " ", "cup", "word " * 20_000, "sum of"] * 5
    wording = learn_wording(said, np.random.default_rng(0), 8)
    np.testing.assert_allclose(wording(said), np.vstack([wording([text]) for text in said]), atol=1e-6)


def test_kinds_of_text_part_along_the_first_direction():
    said, kind = texts()
    x = learn_wording(said, np.random.default_rng(0), 8)(said)
    first = x[:, 0] - (x[:, 0].min() + x[:, 0].max()) / 2
    assert max(np.mean((first > 0) == kind), np.mean((first > 0) != kind)) > 0.97


def test_directions_are_those_of_a_dense_decomposition():
    said, _ = texts(60)
    wording = learn_wording(said, np.random.default_rng(0), 4, steps=30)
    dense = np.zeros((60, len(wording.rarity)))
    for row, text in zip(dense, said, strict=True):
        at = wording.distinct(text)
        row[at] = wording.rarity[at] / np.linalg.norm(wording.rarity[at])
    u, s, _ = np.linalg.svd(dense, full_matrices=False)
    found = wording(said) + wording.centre
    np.testing.assert_allclose(found @ found.T, (u[:, :4] * s[:4] ** 2) @ u[:, :4].T, atol=1e-3)


def test_a_text_without_known_words_stands_at_the_centre():
    wording = learn_wording(texts()[0], np.random.default_rng(0), 4)
    assert not wording(["", "zebra"]).any()


def test_a_text_repeated_is_the_same_text():
    wording = learn_wording(texts()[0], np.random.default_rng(0), 4)
    np.testing.assert_allclose(wording(["sum of sum of sum"]), wording(["sum of sum of sum of sum"]), atol=1e-6)


def test_without_texts_there_are_no_directions():
    assert learn_wording([""] * 9, np.random.default_rng(0))(["a", "b"]).shape == (2, 0)
    assert learn_wording([], np.random.default_rng(0))([]).shape == (0, 0)


def test_damaged_arrays_are_refused():
    wording = learn_wording(texts()[0], np.random.default_rng(0), 4)
    with pytest.raises(ShapeError):
        Wording.of(**wording._replace(rarity=wording.rarity[1:])._asdict())
    with pytest.raises(ValueError, match="rows of the table"):
        Wording.of(**wording._replace(slot=wording.slot + 9999)._asdict())
