import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from polyroute.errors import ConfigError, ShapeError
from polyroute.kernels.sample import gumbel_noise, sample, softmax_sample
from tests.conftest import BACKENDS

DRAWS = 20_000


def softmax(z):
    odds = np.exp(z - z.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_sample_inverts_the_distribution_function(asarray):
    probability = asarray(np.tile([[0.2, 0.0, 0.5, 0.3]], (6, 1)))
    index, weight, propensity = map(np.asarray, sample(probability, asarray([0.0, 0.19, 0.2, 0.69, 0.7, 0.999])))
    assert index[:, 0].tolist() == [0, 0, 2, 2, 3, 3]
    np.testing.assert_allclose(weight[:, 0], [0.2, 0.2, 0.5, 0.5, 0.3, 0.3])
    np.testing.assert_allclose(propensity, weight)


@pytest.mark.parametrize("asarray", BACKENDS)
def test_rows_need_not_sum_to_one_for_the_propensity_to(asarray):
    index, weight, propensity = map(np.asarray, sample(asarray([[3.0, 1.0]]), asarray([0.8])))
    assert (index.item(), weight.item(), propensity.item()) == (1, 1.0, 0.25)


@pytest.mark.parametrize("asarray", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_never_draws_what_has_no_probability(asarray, dtype):
    probability = np.random.default_rng(0).random((500, 7)).astype(dtype)
    probability[:, [0, 3, 6]] = 0.0
    for uniform in (0.0, np.nextafter(dtype(1.0), dtype(0.0)), 1.0):
        index = np.asarray(sample(asarray(probability), asarray(np.full(500, uniform, dtype=dtype))).index)
        assert set(index[:, 0].tolist()) <= {1, 2, 4, 5}


def test_sample_draws_as_often_as_it_says():
    rng = np.random.default_rng(0)
    probability = np.array([0.05, 0.25, 0.0, 0.6, 0.1])
    index = sample(np.tile(probability, (DRAWS, 1)), rng.random(DRAWS)).index[:, 0]
    count = np.bincount(index, minlength=5)
    assert count[2] == 0
    assert chisquare(count[[0, 1, 3, 4]], DRAWS * probability[[0, 1, 3, 4]]).pvalue > 0.001


@pytest.mark.parametrize("asarray", BACKENDS)
def test_the_propensity_of_one_draw_is_the_softmax(asarray):
    rng = np.random.default_rng(0)
    scores, temperature = rng.normal(size=(50, 6)), 0.7
    index, weight, propensity = map(
        np.asarray, softmax_sample(asarray(scores), asarray(rng.gumbel(size=(50, 6))), temperature=temperature)
    )
    np.testing.assert_allclose(propensity, np.take_along_axis(softmax(scores / temperature), index, axis=1))
    np.testing.assert_array_equal(weight, np.take_along_axis(scores, index, axis=1))


def test_softmax_sample_draws_as_often_as_it_says():
    rng = np.random.default_rng(1)
    scores = np.array([1.0, 0.0, -np.inf, -1.0])
    index = softmax_sample(np.tile(scores, (DRAWS, 1)), rng.gumbel(size=(DRAWS, 4)), temperature=2.0).index[:, 0]
    count = np.bincount(index, minlength=4)
    assert count[2] == 0
    assert chisquare(count[[0, 1, 3]], DRAWS * softmax(scores / 2.0)[[0, 1, 3]]).pvalue > 0.001


@pytest.mark.parametrize("asarray", BACKENDS)
def test_draws_without_repeats_have_their_conditional_probability(asarray):
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(40, 5))
    index, _, propensity = map(np.asarray, softmax_sample(asarray(scores), asarray(rng.gumbel(size=(40, 5))), k=3))
    for row, columns, chances in zip(softmax(scores), index, propensity, strict=True):
        assert len(set(columns.tolist())) == 3
        left = 1.0
        for j, chance in zip(columns, chances, strict=True):
            assert chance == pytest.approx(row[j] / left)
            left -= row[j]


def test_ordered_pairs_come_as_often_as_the_product_says():
    rng = np.random.default_rng(3)
    scores = np.array([0.5, 0.0, -0.5])
    index = softmax_sample(np.tile(scores, (DRAWS, 1)), rng.gumbel(size=(DRAWS, 3)), k=2).index
    p = softmax(scores)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    count = [int(((index[:, 0] == i) & (index[:, 1] == j)).sum()) for i, j in pairs]
    assert chisquare(count, [DRAWS * p[i] * p[j] / (1 - p[i]) for i, j in pairs]).pvalue > 0.001


@pytest.mark.parametrize("asarray", BACKENDS)
def test_gumbel_noise_has_its_distribution_and_no_infinities(asarray):
    noise = np.asarray(gumbel_noise(asarray(np.random.default_rng(4).random(5000))))
    assert kstest(noise, "gumbel_r").pvalue > 0.001
    assert np.isfinite(np.asarray(gumbel_noise(asarray(np.array([0.0, 1.0]))))).all()
    assert np.isfinite(np.asarray(gumbel_noise(asarray(np.array([0.0, 1.0], dtype=np.float32))))).all()


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"gumbel: expected shape \(2, 3\), got \(2, 4\)"):
        softmax_sample(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ShapeError, match=r"uniform: expected shape \(2,\), got \(3,\)"):
        sample(np.ones((2, 3)), np.zeros(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature: expected a number above 0"):
        softmax_sample(np.zeros((2, 3)), np.zeros((2, 3)), temperature=temperature)
