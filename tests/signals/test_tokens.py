"""Token counts: near the recorded ones, and sane on anything."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.signals.tokens import PER_ATTACHMENT, READ, count_tokens

# text, tokens under the cl100k_base vocabulary
KNOWN = [
    ("What is the capital of France?", 7),
    ("The quick brown fox jumps over the lazy dog.", 10),
]


@pytest.mark.parametrize(("text", "tokens"), KNOWN)
def test_near_on_short_texts(text, tokens):
    assert count_tokens(text) == pytest.approx(tokens, rel=0.3)


def chat(*texts):
    return [{"role": "user", "content": text} for text in texts]


@pytest.mark.parametrize("escape", [True, False])
@pytest.mark.parametrize("text", ['He said "no".\n\tThen \\ left.', "Привет, мир! 你好 🎉", "plain words " * 200])
def test_json_counts_as_the_text_in_it(text, escape):
    wire = json.dumps(chat(text), ensure_ascii=escape).encode()
    assert count_tokens(wire) == pytest.approx(count_tokens(text) + 4, rel=0.1, abs=2)
    assert count_tokens(memoryview(wire)) == count_tokens(wire)


def test_messages_add_a_few_tokens_each():
    one, ten = (count_tokens(json.dumps(chat(*["hello"] * n)).encode()) for n in (1, 10))
    assert 2 <= (ten - one) / 9 <= 8


@pytest.mark.parametrize("size", [1_000, 3_000_000])
def test_attachments_cost_the_same_whatever_their_size(size):
    data = base64.b64encode(bytes(range(256)) * (size // 256)).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    wire = json.dumps([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture, sound]}])
    assert count_tokens(wire.encode()) == pytest.approx(2 * PER_ATTACHMENT + 40, abs=40)
    assert count_tokens(wire.replace(": ", ":").encode()) == pytest.approx(2 * PER_ATTACHMENT + 40, abs=40)


def test_small_data_fields_are_counted_as_text():
    assert count_tokens(b'[{"role":"user","data":"some words here"}]') < 30


def test_long_texts_are_read_in_parts_and_scaled():
    text = "The cat sat on the mat, and 12 dogs barked.\n" * 20_000
    assert len(text) > 10 * READ
    assert count_tokens(text) == pytest.approx(20_000 * count_tokens(text[:44]), rel=0.1)


@pytest.mark.parametrize("nothing", [None, "", b"", 5, 3.5, {}])
def test_nothing_has_no_tokens(nothing):
    assert count_tokens(nothing) == 0


@settings(max_examples=120, deadline=None)
@given(st.text(st.characters(codec=None), max_size=200) | st.binary(max_size=200))
def test_nothing_fails_and_counts_are_not_negative(prompt):
    assert 0 <= count_tokens(prompt) <= 3 * len(prompt) + 50


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=100), st.text(st.characters(codec="utf-8"), max_size=100))
def test_more_text_has_more_tokens(a, b):
    assert count_tokens(a + "\n" + b) >= count_tokens(a) - 1


def test_near_the_recorded_counts(data_dir):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'polyroute[data]'")
    recorded = parquet.read_table(data_dir / "queries.parquet", columns=["query_id", "n_tokens"]).to_pydict()
    n_tokens = dict(zip(recorded["query_id"], recorded["n_tokens"], strict=True))
    for name in ("llmrouter9", "routellm", "routerdc7"):
        table = parquet.read_table(data_dir / f"outcomes/{name}.parquet", columns=["query_id", "query"])
        rows = table.slice(0, 40_000).to_pydict()
        texts = dict(zip(rows["query_id"], rows["query"], strict=True))
        ids = list(texts)[::5]
        known = np.array([n_tokens[i] for i in ids], dtype=float)
        counted = np.array([count_tokens(texts[i]) for i in ids])
        assert counted.sum() == pytest.approx(known.sum(), rel=0.05)
        assert np.median(np.abs(counted - known) / known) < 0.08
