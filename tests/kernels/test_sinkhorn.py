import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels.sinkhorn import sinkhorn_prices
from tests.conftest import BACKENDS


@pytest.mark.parametrize("asarray", BACKENDS)
def test_scarce_candidates_get_a_price_and_slack_ones_do_not(asarray):
    scores = np.random.default_rng(0).normal(size=(64, 4)) + np.array([2.0, 0.0, 0.0, 0.0])  # all want the first
    capacity = np.array([16.0, 24.0, 24.0, 64.0])
    price = np.asarray(sinkhorn_prices(asarray(scores), asarray(capacity), steps=200))
    load = softmax((scores - price) / 0.1, axis=1).sum(axis=0)
    assert (load <= 1.01 * capacity).all()
    assert price[0] > 0
    assert price[3] == 0
    np.testing.assert_allclose(load[price > 0], capacity[price > 0], rtol=0.01)  # priced means full


@pytest.mark.parametrize("asarray", BACKENDS)
def test_two_alike_rows_pay_the_log_odds(asarray):
    # softmax of (s - price, 0) / t must be c / n for the first: price = s - t * log(c / (n - c))
    scores, capacity = np.tile([[1.0, 0.0]], (10, 1)), np.array([2.0, 10.0])
    price = np.asarray(sinkhorn_prices(asarray(scores), asarray(capacity), temperature=0.5, steps=100))
    np.testing.assert_allclose(price, [1.0 - 0.5 * np.log(2 / 8), 0.0], rtol=1e-9)


def test_cold_prices_reach_the_exact_assignment():
    scores, capacity = np.random.default_rng(1).normal(size=(6, 3)), np.full(3, 2.0)
    _, slots = linear_sum_assignment(np.repeat(scores, 2, axis=1), maximize=True)
    price = sinkhorn_prices(scores, capacity, temperature=0.01, steps=2000)
    assert (scores - price).argmax(axis=1).tolist() == (slots // 2).tolist()


@pytest.mark.parametrize("asarray", BACKENDS)
def test_ample_capacity_costs_nothing(asarray):
    scores = np.random.default_rng(2).normal(size=(8, 3))
    assert np.asarray(sinkhorn_prices(asarray(scores), asarray(np.full(3, 8.0)))).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("asarray", BACKENDS)
def test_no_capacity_is_an_infinite_price_and_forbidden_pairs_load_nothing(asarray):
    scores = np.random.default_rng(3).normal(size=(8, 3))
    scores[:4, 1] = -np.inf
    scores[0] = -np.inf  # may go nowhere
    price = np.asarray(sinkhorn_prices(asarray(scores), asarray(np.array([0.0, 2.0, 8.0])), steps=300))
    assert price[0] == np.inf
    assert np.isfinite(price[1:]).all()
    load = softmax((scores[1:] - price) / 0.1, axis=1).sum(axis=0)
    assert load[0] == 0
    assert load[1] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_an_infeasible_capacity_still_spreads_in_proportion(asarray):
    scores = np.random.default_rng(4).normal(size=(90, 2))
    price = np.asarray(sinkhorn_prices(asarray(scores), asarray(np.array([10.0, 20.0])), steps=500))
    np.testing.assert_allclose(softmax((scores - price) / 0.1, axis=1).sum(axis=0), [30.0, 60.0], rtol=0.01)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_fixed_columns_take_exactly_their_capacity_and_slack_ones_pay(asarray):
    scores, capacity = np.random.default_rng(5).normal(size=(60, 3)), np.array([10.0, 20.0, 30.0])
    scores[:, 2] -= 2.0
    price = np.asarray(sinkhorn_prices(asarray(scores), asarray(capacity), temperature=0.5, steps=200, fixed=True))
    np.testing.assert_allclose(softmax((scores - price) / 0.5, axis=1).sum(axis=0), capacity, rtol=1e-6)
    assert price[2] < 0


@pytest.mark.parametrize("asarray", BACKENDS)
def test_a_column_nobody_may_take_costs_nothing(asarray):
    scores = np.random.default_rng(6).normal(size=(12, 3))
    scores[:, 1] = -np.inf
    for fixed in (False, True):
        price = np.asarray(sinkhorn_prices(asarray(scores), asarray(np.array([6.0, 1.0, 6.0])), steps=100, fixed=fixed))
        assert price[1] == 0
        np.testing.assert_allclose(softmax((scores - price) / 0.1, axis=1).sum(axis=0), [6.0, 0.0, 6.0], rtol=0.01)


def test_no_rows_pay_nothing():
    assert sinkhorn_prices(np.zeros((0, 2)), np.ones(2)).tolist() == [0.0, 0.0]


def test_a_wrong_shape_names_the_argument():
    with pytest.raises(ShapeError, match=r"capacity: expected shape \(4,\), got \(3,\)"):
        sinkhorn_prices(np.zeros((2, 4)), np.ones(3))


def test_a_temperature_must_be_positive():
    with pytest.raises(ConfigError, match="temperature: expected a number above 0"):
        sinkhorn_prices(np.zeros((2, 4)), np.ones(4), temperature=0.0)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_it_traces_without_a_break_and_differentiates():
    torch = pytest.importorskip("torch")
    scores = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    capacity = torch.tensor([1.0, 16.0, 16.0, 16.0], dtype=torch.float64)
    traced = torch.compile(sinkhorn_prices, fullgraph=True, backend="eager")(scores, capacity, steps=5)
    assert torch.equal(traced, sinkhorn_prices(scores, capacity, steps=5))
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sinkhorn_prices(s, capacity, temperature=1.0, steps=5)[:1], scores)
