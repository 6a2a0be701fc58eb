"""The transformer featuriser: near the recorded vectors, the same alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.signals.minilm import MAX_PIECES, MiniLMSurface
from polyroute.signals.static import UNIT

TEXTS = [
    "What is the capital of France?",
    "Write a function that reverses a list.",
    "法国的首都是哪里？",
    "🎉",
    "x" * 500,
]


def test_vectors_have_unit_length(minilm):
    vectors = minilm(TEXTS)
    assert vectors.shape == (len(TEXTS), minilm.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_batch_equals_single_to_the_bit(minilm):
    np.testing.assert_array_equal(minilm(TEXTS), np.concatenate([minilm([text]) for text in TEXTS]))


@pytest.mark.parametrize("text", ["", " ", "\ud800", "\0", "\uffff"], ids=ascii)
def test_odd_texts_have_finite_vectors(minilm, text):
    assert np.isfinite(minilm([text])).all()


def test_only_the_first_pieces_are_read(minilm):
    words = "word " * (MAX_PIECES - 2)
    np.testing.assert_array_equal(minilm([words + "and something else"]), minilm([words + "cut off"]))
    assert (minilm([words[:-5] + "something"]) != minilm([words])).any()


def test_no_texts_give_no_rows(minilm):
    assert minilm([]).shape == (0, 384)


def test_near_the_recorded_vectors(minilm, data_dir):
    """The recorded ones come from the same network in single precision; these from its int8 export."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'polyroute[data]'")
    listed = parquet.read_table(data_dir / "queries.parquet", columns=["query_id", "emb_row"]).to_pydict()
    row_of = dict(zip(listed["query_id"], listed["emb_row"], strict=True))
    table = parquet.read_table(data_dir / "outcomes/llmrouter9.parquet", columns=["query_id", "query"]).to_pydict()
    texts = dict(zip(table["query_id"], table["query"], strict=True))
    ids = list(texts)[::150]
    recorded = np.load(data_dir / "embeddings.npy", allow_pickle=False, mmap_mode="r")
    theirs = np.stack([recorded[row_of[i]] for i in ids]).astype(np.float32)
    cosine = (minilm([texts[i] for i in ids]) * theirs).sum(axis=1)
    assert np.median(cosine) > 0.999
    assert cosine.min() > 0.99


def test_beside_surface_features(minilm, static):
    both = MiniLMSurface(minilm)
    vectors = both(TEXTS)
    assert vectors.shape == (len(TEXTS), both.dim)
    np.testing.assert_allclose(vectors[:, : minilm.dim], minilm(TEXTS) * UNIT, atol=1e-6)
    np.testing.assert_allclose(vectors[:, minilm.dim :], static(TEXTS)[:, 256:], atol=1e-6)
