"""Sparse attention: dense where it may look at all, the oracle where it may not."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ShapeError
from polyroute.kernels.attend import sparse_attention
from tests.conftest import BACKENDS


def by_hand(q, keys, values, k):
    scores = q @ keys.T / np.sqrt(keys.shape[1])
    output, share = np.zeros((len(q), values.shape[1])), np.zeros(len(keys))
    for t, row in enumerate(scores):
        top = np.argsort(-row)[:k]
        weight = np.exp(row[top]) / np.exp(row[top]).sum()
        output[t] = weight @ values[top]
        share[top] += weight / len(q)
    return output, share


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("asarray", BACKENDS)
def test_it_equals_the_loop_over_tokens(asarray, k):
    rng = np.random.default_rng(k)
    q, keys, values = rng.normal(size=(7, 4)), rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    found = sparse_attention(asarray(q), asarray(keys), asarray(values), k)
    output, share = by_hand(q, keys, values, k)
    np.testing.assert_allclose(np.asarray(found.output), output, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found.share), share, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found.weight).sum(axis=1), 1.0)
    assert np.asarray(found.index).shape == (7, k)


def test_wrong_shapes_name_the_argument():
    q, keys = np.zeros((3, 4)), np.zeros((5, 4))
    with pytest.raises(ShapeError, match="queries"):
        sparse_attention(np.zeros((3, 2)), keys, keys, 2)
    with pytest.raises(ShapeError, match="values"):
        sparse_attention(q, keys, np.zeros((4, 4)), 2)
    with pytest.raises(ShapeError, match="k: expected"):
        sparse_attention(q, keys, keys, 6)
