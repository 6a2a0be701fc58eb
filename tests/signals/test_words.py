"""The memory of words gives the tokeniser's own tokens."""

from __future__ import annotations

import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.signals import words
from polyroute.signals.words import Words

PIECES = st.sampled_from(
    [
        *("a", "the", "Ab", "é", "中文", "か", "한", "²", "½", "ª", "e\u0301", "\u0663"),
        *(" ", "  ", "\n", "\t", "\r", "\xa0", "\u2009", "\0", "\ufffd\ufffd", "▁"),
        *(".", ",", "?", "_", "──", "’", "://", "🎉", "7", "42", "<s>", "</s>", "<unk>"),
    ]
)


@pytest.fixture(scope="module")
def tokens(static):
    return Words(static.words.tokenizer, list)


def ids(tokens, text):
    return [token for piece in tokens(text) for token in piece]


def whole(tokens, text):
    return tokens.tokenizer.encode(text, add_special_tokens=False).ids


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_equals_the_tokeniser_on_hard_joints(tokens, text):
    assert ids(tokens, text) == whole(tokens, text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\n", "x", "  two  spaces  ", "line\nline\n\n  indented\n", "Ünïcödé 你好 мир", "a" * 500, "<s>", "a▁ b"],
    ids=ascii,
)
def test_equals_the_tokeniser(tokens, text):
    assert ids(tokens, text) == whole(tokens, text) == ids(tokens, text)


def test_no_token_of_the_vocabulary_crosses_a_segment(tokens):
    """The condition under which cutting a text into segments leaves its tokens as they are."""
    single_bytes = re.compile("<0x[0-9A-F]{2}>")
    for token in tokens.tokenizer.get_vocab():
        if token not in tokens.whole[1:] and not single_bytes.fullmatch(token):
            text = token.replace(words.SPACE, " ")
            assert words.SEGMENTS.findall(text) == [text]


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_segments_make_up_the_text(text):
    assert "".join(words.SEGMENTS.findall(text)) == text


def test_memory_is_bounded_and_long_segments_are_not_kept(tokens, monkeypatch):
    monkeypatch.setattr(words, "MEMORY", 50)
    fresh = Words(tokens.tokenizer, list)
    for start in range(0, 500, 50):
        fresh(" ".join(f"word{chr(97 + i % 26)}{i}" for i in range(start, start + 50)) + " " + "y" * 100)
    assert 0 < len(fresh.memory) <= 50
    assert max(map(len, fresh.memory)) <= words.LONGEST


@pytest.mark.parametrize("text", ["word " * 300, "好" * 500])
def test_long_texts_go_to_the_tokeniser_whole(tokens, text):
    fresh = Words(tokens.tokenizer, list)
    assert fresh(text) == [whole(tokens, text)]
    assert not fresh.memory


def test_threads_share_it(tokens, monkeypatch):
    monkeypatch.setattr(words, "MEMORY", 20)
    fresh = Words(tokens.tokenizer, list)
    texts = [" ".join(f"n{(i * k) % 37}" for i in range(60)) for k in range(1, 9)]
    expected = [whole(tokens, text) for text in texts]
    wrong: list[int] = []

    def work(k):
        for _ in range(50):
            if ids(fresh, texts[k]) != expected[k]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
