import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.errors import ConfigError
from polyroute.kernels import _xp
from polyroute.kernels.topk import argmax, top_k
from tests.conftest import BACKENDS


@pytest.mark.parametrize("asarray", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("num_columns", [8, 64])  # 64: numpy partitions before it sorts
def test_top_k_is_the_head_of_a_full_sort(asarray, k, num_columns):
    scores = np.random.default_rng(0).permutation(20 * num_columns).reshape(20, num_columns).astype(float)
    index, weight, propensity = top_k(asarray(scores), k)
    oracle = np.array([sorted(range(num_columns), key=lambda j: -row[j])[:k] for row in scores])
    assert np.asarray(index).tolist() == oracle.tolist()
    assert np.asarray(weight).tolist() == np.take_along_axis(scores, oracle, axis=1).tolist()
    assert propensity is None


@pytest.mark.parametrize("asarray", BACKENDS)
def test_a_small_pool_is_taken_whole(asarray):
    index, weight, _ = top_k(asarray([[1.0, 3.0, 2.0]]), 10)
    assert np.asarray(index).tolist() == [[1, 2, 0]]
    assert np.asarray(weight).tolist() == [[3.0, 2.0, 1.0]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_numpy_orders_ties_by_column(seed, num_columns, k):
    row = np.random.default_rng(seed).integers(4, size=num_columns).tolist()
    scores = np.array([row], dtype=float)
    index, weight, _ = top_k(scores, k)
    assert weight[0].tolist() == sorted(row, reverse=True)[:k]
    assert len(set(index[0].tolist())) == min(k, len(row))
    same = np.diff(weight[0]) == 0
    assert (np.diff(index[0])[same] > 0).all()


@pytest.mark.parametrize("asarray", BACKENDS)
def test_forbidden_candidates_come_last(asarray):
    index = np.asarray(top_k(asarray([[-np.inf, 0.5, -np.inf, -2.0]]), 2).index)
    assert index.tolist() == [[1, 3]]


@pytest.mark.torch
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]), st.integers(8, 64), st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_torch_finds_a_few_as_its_own_sort_does(seed, k, num_columns, share_forbidden):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    scores = rng.integers(6, size=(5, num_columns)).astype(np.float32)  # ties
    scores[rng.random(scores.shape) < share_forbidden] = -np.inf  # rows with fewer than k left, or none
    x = torch.tensor(scores, requires_grad=True)
    index, weight, _ = top_k(x, k)
    assert torch.equal(weight, x.topk(k, dim=-1).values)
    assert torch.equal(weight, x.gather(1, index))
    assert all(len(set(row)) == k for row in index.tolist())
    (slope,) = torch.autograd.grad(weight.sum(), x)
    assert torch.equal(slope, torch.zeros_like(x).scatter(1, index, 1.0))


@pytest.mark.parametrize("asarray", BACKENDS)
def test_argmax_takes_the_first_of_several_best(asarray):
    index, weight, propensity = argmax(asarray([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]]))
    assert np.asarray(index).tolist() == [[1], [0]]
    assert np.asarray(weight).tolist() == [[2.0], [1.0]]
    assert propensity is None


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(ConfigError, match="k: expected 1 or more"):
        top_k(np.zeros((2, 3)), k)


@pytest.mark.torch
def test_weights_pass_gradients_and_indices_do_not():
    torch = pytest.importorskip("torch")
    scores = torch.tensor([[0.1, 0.9, 0.5]], requires_grad=True)
    index, weight, _ = top_k(scores, 2)
    weight.sum().backward()
    assert scores.grad.tolist() == [[0.0, 1.0, 1.0]]
    assert not index.dtype.is_floating_point


@pytest.mark.parametrize("asarray", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_logsumexp_is_exact_and_does_not_overflow(asarray, axis):
    x = np.array([[0.0, 1.0, -np.inf], [1000.0, 1000.0, -np.inf], [-1000.0, -1001.0, -np.inf]])
    got = np.asarray(_xp.logsumexp(asarray(x), axis))
    peak = np.where(np.isfinite(x.max(axis=axis, keepdims=True)), x.max(axis=axis, keepdims=True), 0.0)
    with np.errstate(divide="ignore"):
        oracle = np.log(np.exp(x - peak).sum(axis=axis, keepdims=True)) + peak
    np.testing.assert_allclose(got, oracle, rtol=1e-14)
    assert np.isneginf(got).any() == (axis == 0)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_logsumexp_of_nothing_is_log_zero(asarray):
    assert np.asarray(_xp.logsumexp(asarray(np.zeros((2, 0))), 1)).tolist() == [[-np.inf], [-np.inf]]


@pytest.mark.parametrize("asarray", BACKENDS)
def test_log_of_zero_is_minus_infinity_without_a_warning(asarray):
    assert np.asarray(_xp.log(asarray([0.0, 1.0]))).tolist() == [-np.inf, 0.0]
