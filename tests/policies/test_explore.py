import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import chisquare, norm

from polyroute.errors import ConfigError, EstimateError
from polyroute.kernels.sample import sample
from polyroute.policies.explore import UCB, Epsilon, Softmax, Thompson, chance_of_best, drawn, normal, utility_and_std
from polyroute.types import Estimate, Objective

GOAL = Objective({"quality": 1.0, "cost": -10.0})
POLICIES = [Epsilon(0.3), Softmax(0.2), UCB(), Thompson()]
DRAWS = 20_000


def estimates_of(mean, std=None):
    mean = np.array(mean, dtype=float)
    return {"quality": Estimate(mean, None if std is None else np.array(std)), "cost": Estimate(np.zeros_like(mean))}


def random_case(seed, n=8, m=5):
    rng = np.random.default_rng(seed)
    allowed = rng.random((n, m)) < 0.6
    allowed[np.arange(n), rng.integers(m, size=n)] = True
    return estimates_of(rng.random((n, m)), rng.random((n, m))), allowed


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_odds_are_odds_and_never_fall_on_the_forbidden(policy):
    for seed in range(5):
        estimates, allowed = random_case(seed)
        odds = policy.probabilities(estimates, GOAL, allowed)
        np.testing.assert_allclose(odds.sum(axis=1), 1.0)
        assert (odds >= 0).all()
        assert (odds[~allowed] == 0).all()


@pytest.mark.parametrize("policy", [Epsilon(0.3), Softmax(0.2), Thompson()], ids=repr)
def test_the_logged_propensity_is_how_often_it_happens(policy):
    estimates, allowed = random_case(11, n=1, m=4)
    allowed[:] = [True, False, True, True]
    mean, std = estimates["quality"]
    many = estimates_of(np.tile(mean, (DRAWS, 1)), np.tile(std, (DRAWS, 1)))
    index, weight, propensity = policy.decide(many, GOAL, np.tile(allowed, (DRAWS, 1)), np.random.default_rng(5))
    odds = policy.probabilities(estimates, GOAL, allowed)[0]
    count = np.bincount(index[:, 0], minlength=4)
    assert count[1] == 0
    assert chisquare(count[[0, 2, 3]], DRAWS * odds[[0, 2, 3]]).pvalue > 0.001
    np.testing.assert_allclose(propensity[:, 0], odds[index[:, 0]])
    np.testing.assert_allclose(weight[:, 0], estimates["quality"].mean[0, index[:, 0]])


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_same_seed_makes_the_same_choices(policy):
    estimates, allowed = random_case(3, n=50)
    first, again = (policy.decide(estimates, GOAL, allowed, np.random.default_rng(9)).index for _ in range(2))
    assert first.tolist() == again.tolist()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_drawing_equals_the_kernel(seed):
    rng = np.random.default_rng(seed)
    odds = rng.random((30, 5)) * (rng.random((30, 5)) < 0.7) + 1e-9 * (np.arange(5) == 2)
    odds /= odds.sum(axis=1, keepdims=True)
    ours = drawn(odds, odds, np.random.default_rng(seed))
    kernel = sample(odds, np.random.default_rng(seed).random(30))
    for mine, theirs in zip(ours, kernel, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_epsilon_has_its_closed_form():
    odds = Epsilon(0.2).probabilities(estimates_of([[0.1, 0.9, 0.5, 0.3]]), GOAL, np.array([[True, True, False, True]]))
    np.testing.assert_allclose(odds, [[0.2 / 3, 0.8 + 0.2 / 3, 0.0, 0.2 / 3]])
    sure = Epsilon(0.0).decide(estimates_of([[0.1, 0.9]]), GOAL, np.ones((1, 2), bool), np.random.default_rng(0))
    assert (sure.index.item(), sure.propensity.item()) == (1, 1.0)


def test_softmax_has_its_closed_form():
    odds = Softmax(0.5).probabilities(estimates_of([[1.0, 0.5, 0.0]]), GOAL, np.array([[True, True, False]]))
    np.testing.assert_allclose(odds, [[1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1)), 0.0]])


def test_ucb_gives_the_benefit_of_the_doubt_and_stays_deterministic():
    estimates, allowed = estimates_of([[0.6, 0.5, 0.4]], [[0.0, 0.2, 0.9]]), np.array([[True, True, False]])
    rng = np.random.default_rng(0)
    assert UCB(0.0).decide(estimates, GOAL, allowed, rng).index.tolist() == [[0]]
    index, weight, propensity = UCB(1.0).decide(estimates, GOAL, allowed, rng)
    assert (index.tolist(), weight.tolist(), propensity) == ([[1]], [[0.5]], None)
    assert UCB(1.0).probabilities(estimates, GOAL, allowed).tolist() == [[0, 1, 0]]


def test_doubts_of_independent_metrics_add_in_squares_and_none_is_none():
    ones = np.ones((1, 2))
    estimates = {"quality": Estimate(ones, 0.3 * ones), "cost": Estimate(ones, 0.04 * ones), "latency": Estimate(ones)}
    goal = Objective({"quality": 1.0, "cost": -10.0, "latency": -1.0})
    utility, std = utility_and_std(estimates, goal, np.array([[True, False]]))
    np.testing.assert_allclose(std, [[0.5, 0.0]])
    assert utility.tolist() == [[-10.0, -np.inf]]


def test_without_doubt_all_are_greedy():
    estimates, allowed = random_case(4)
    known = estimates_of(estimates["quality"].mean)
    best = np.where(allowed, known["quality"].mean, -np.inf).argmax(axis=1)
    for policy in (UCB(), Thompson()):
        assert policy.decide(known, GOAL, allowed, np.random.default_rng(0)).index[:, 0].tolist() == best.tolist()
    assert (Thompson().probabilities(known, GOAL, allowed).max(axis=1) == 1.0).all()


def test_a_std_that_is_not_a_number_is_named():
    estimates = estimates_of([[0.1, 0.2]], [[0.1, np.nan]])
    with pytest.raises(EstimateError, match=r"quality.std'\]\[0, 1\]"):
        Thompson().decide(estimates, GOAL, np.ones((1, 2), bool), np.random.default_rng(0))
    UCB().decide(estimates, GOAL, np.array([[True, False]]), np.random.default_rng(0))  # not allowed: no harm


def test_two_normals_have_a_closed_form():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(200, 2)), 10 ** rng.uniform(-3, 2, size=(200, 2))
    exact = norm.cdf((mean[:, 0] - mean[:, 1]) / np.hypot(std[:, 0], std[:, 1]))
    np.testing.assert_allclose(chance_of_best(mean, std)[:, 0], exact, atol=1e-6)


@pytest.mark.parametrize("m", [1, 2, 12])
def test_equals_are_the_best_equally_often(m):
    np.testing.assert_allclose(chance_of_best(np.full((1, m), 0.4), np.full((1, m), 0.1)), 1 / m, atol=1e-9)


def test_an_exactly_known_rival_has_a_closed_form_and_ties_go_to_the_first():
    mean, std = np.array([[0.3, 0.0, 0.3, 0.1]]), np.array([[0.0, 0.5, 0.0, 0.0]])
    above = norm.sf(0.6)
    np.testing.assert_allclose(chance_of_best(mean, std), [[1 - above, above, 0.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_integral_agrees_with_adaptive_quadrature(seed):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(3, 7))
    mean, std = rng.normal(size=m), 10 ** rng.uniform(-2, 0.5, size=m)

    def exact(j):
        def density(x):
            below = ndtr((x - mean) / std)
            below[j] = np.exp(-0.5 * ((x - mean[j]) / std[j]) ** 2) / std[j] / np.sqrt(2 * np.pi)
            return below.prod()

        low, high = mean[j] - 9 * std[j], mean[j] + 9 * std[j]
        cuts = sorted({low, high, *np.clip((mean + np.outer([-4, -1, 0, 1, 4], std)).ravel(), low, high)})
        return sum(quad(density, a, b, epsabs=1e-9)[0] for a, b in itertools.pairwise(cuts))

    np.testing.assert_allclose(chance_of_best(mean[None], std[None])[0], [exact(j) for j in range(m)], atol=1e-6)


def test_the_integral_agrees_with_counting_largest_draws():
    rng = np.random.default_rng(1)
    mean, std = rng.normal(size=(1, 12)), rng.random((1, 12))
    best = rng.normal(mean, std, size=(200_000, 12)).argmax(axis=1)
    odds = chance_of_best(mean, std)[0]
    count = np.bincount(best, minlength=12)
    often = odds > 1e-4
    assert chisquare(count[often], count[often].sum() * odds[often] / odds[often].sum()).pvalue > 0.001
    assert count[~often].sum() <= 200_000 * 12e-4


def test_many_rows_in_pieces_are_the_same_as_one_by_one():
    rng = np.random.default_rng(2)
    mean, std = rng.normal(size=(70, 12)), rng.random((70, 12)) * (rng.random((70, 12)) < 0.8)
    single = np.concatenate([chance_of_best(mean[i : i + 1], std[i : i + 1]) for i in range(70)])
    np.testing.assert_allclose(chance_of_best(mean, std), single, atol=1e-12)
    assert chance_of_best(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


def test_the_normal_is_as_exact_as_it_says():
    t = np.linspace(-12, 12, 2001)
    below, density = normal(t)
    np.testing.assert_allclose(below, norm.cdf(t), atol=1e-7)
    np.testing.assert_allclose(density, norm.pdf(t), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Epsilon(1.5), "epsilon: expected a probability"),
        (lambda: Epsilon(float("nan")), "epsilon"),
        (lambda: Softmax(0.0), "temperature: expected a number above 0"),
        (lambda: Thompson(-1.0), "scale: expected a factor"),
    ],
)
def test_settings_are_checked_when_built(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("m", [16, 64])
@pytest.mark.parametrize("apart", [0.01, 0.3])
@pytest.mark.parametrize("stds", ["alike", "some narrow", "magnitudes", "some known"])
def test_the_chance_of_best_in_a_large_pool_agrees_with_a_dense_integral(m, apart, stds):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(m)
    mean = rng.normal(0.0, apart, m)
    std = {
        "alike": np.full(m, 0.1),
        "some narrow": np.where(rng.random(m) < 0.1, 1e-3, 0.3),
        "magnitudes": 10 ** rng.uniform(-2.5, 0, m),
        "some known": np.where(rng.random(m) < 0.3, 1e-9, 0.2),  # as good as known
    }[stds]
    known = std < 1e-6
    low = max((mean - 8 * std).max(), mean[known].max(initial=-np.inf))
    x = np.linspace(low, (mean + 8 * std).max(), 30_001)
    doubtful = np.flatnonzero(~known)
    below = stats.norm.logcdf((x[:, None] - mean[doubtful]) / std[doubtful])
    density = stats.norm.logpdf((x[:, None] - mean[doubtful]) / std[doubtful]) - np.log(std[doubtful])
    chance = np.trapezoid(np.exp(density + below.sum(axis=1, keepdims=True) - below), x, axis=0)
    found = chance_of_best(mean[None], np.where(known, 0.0, std)[None])[0]
    assert found[doubtful] == pytest.approx(chance, abs=1e-6)
    assert found[known].sum() == pytest.approx(1.0 - chance.sum(), abs=1e-5)
    assert np.count_nonzero(found[known]) <= 1


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_no_rows_give_no_choices(policy):
    none = {name: Estimate(np.zeros((0, 3)), np.zeros((0, 3))) for name in ("quality", "cost")}
    allowed = np.ones((0, 3), dtype=bool)
    assert policy.decide(none, GOAL, allowed, np.random.default_rng(0)).index.shape == (0, 1)
    assert policy.probabilities(none, GOAL, allowed).shape == (0, 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_weight_of_doubt_that_is_no_number_is_refused(wrong):
    with pytest.raises(ConfigError, match="z: expected a finite number"):
        UCB(z=wrong)
    with pytest.raises(ConfigError, match="scale: expected a factor"):
        Thompson(scale=wrong)
