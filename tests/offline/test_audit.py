"""Expected token counts, and when a drift of bills is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.offline.audit import TokenAuditor, boundary, inflated, log_error, run_length, samples_needed


def bills(n: int = 600, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    domain = np.array(["a", "b"])[rng.integers(2, size=n)]
    tokens = np.exp(4 + 0.5 * x[:, 0] + (domain == "b") + rng.normal(0, 0.3, n))
    return x, np.maximum(tokens.round(), 1), domain


@pytest.fixture(scope="module")
def auditor():
    x, tokens, domain = bills()
    return TokenAuditor().fit(x, tokens, domain, np.random.default_rng(0))


def test_it_knows_the_counts_and_their_scatter(auditor):
    x, tokens, domain = bills(seed=1)
    median, low, high = auditor.predict(x, domain)
    assert log_error(median, tokens) == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.1)
    assert ((low < tokens) & (tokens < high)).mean() == pytest.approx(0.68, abs=0.06)
    assert auditor.scatter_["a"] == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("growth", [0.3, 1.0])
def test_an_inflation_is_noticed_when_the_formula_says(auditor, growth):
    x, tokens, domain = bills(seed=2)
    own = domain == "a"
    x, tokens, rng, delays, alarm = x[own], inflated(tokens[own], growth), np.random.default_rng(3), [], None
    for _ in range(80):
        auditor.sum_["a"] = 0.0
        for i, row in enumerate(rng.integers(len(x), size=500)):
            if alarm := auditor.update(x[row], "a", tokens[row]):
                delays.append(i + 1)
                break
    assert len(delays) == 80
    assert np.mean(delays) == pytest.approx(auditor.delay("a", growth), rel=0.3)
    assert alarm.domain == "a"
    assert 0 < alarm.growth < 3 * growth


def test_run_lengths_agree_with_a_simulation():
    rng = np.random.default_rng(0)
    for drift, threshold in ((0.5, 4.0), (-0.2, 3.0), (0.0, 4.0)):
        lengths = []
        for _ in range(400):
            total, steps = 0.0, 0
            while total <= threshold:
                total, steps = max(0.0, total + rng.normal() + drift), steps + 1
            lengths.append(steps)
        assert np.mean(lengths) == pytest.approx(run_length(drift, threshold), rel=0.15)


def test_a_boundary_holds_its_rate():
    rng = np.random.default_rng(0)
    residual = rng.normal(size=4000)
    limit = boundary(residual, 0.25, 0.1, rng)
    total, highest = np.zeros(500), np.zeros(500)
    for _ in range(1000):
        total = np.maximum(total + rng.normal(size=500) - 0.25, 0)
        highest = np.maximum(highest, total)
    assert 0.01 < (highest > limit).mean() <= 0.1


def test_a_z_test_needs_more_bills_for_less_inflation():
    assert samples_needed(1.0, 0.4) == pytest.approx(((1.645 + 1.282) * 0.4 / np.log(2)) ** 2)
    assert samples_needed(0.1, 0.4) > 10 * samples_needed(1.0, 0.4)


def test_what_cannot_be():
    x, tokens, domain = bills(20)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="growth"):
        TokenAuditor(0)
    with pytest.raises(NotFittedError):
        TokenAuditor().update(x[0], "a", 10)
    with pytest.raises(OutcomesError, match="counts of 1 or more"), np.errstate(divide="ignore"):
        TokenAuditor().fit(x, np.zeros(20), domain, rng)
    with pytest.raises(ShapeError):
        TokenAuditor().fit(x[:3], tokens, domain, rng)
