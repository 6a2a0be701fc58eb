"""Thresholds over difficulty, economics, and a share that holds."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.policies.escalate import (
    DifficultyThreshold,
    UploadPolicy,
    confidence_from_logprobs,
    expected_cost,
    worth_escalating,
)


def test_the_threshold_rises_between_the_knots():
    assert DifficultyThreshold()(np.array([0, 0.3, 0.5, 0.7, 1])) == pytest.approx([0.8, 0.8, 0.86, 0.92, 0.92])
    with pytest.raises(ConfigError, match="low"):
        DifficultyThreshold(low=0.9, high=0.8)
    with pytest.raises(ConfigError, match="knots"):
        DifficultyThreshold(knots=(0.5, 0.5))


def test_confidence_is_a_share_of_the_floor():
    assert confidence_from_logprobs([-1.0, -3.0], -4.0) == pytest.approx(0.5)
    assert confidence_from_logprobs([0.0], -4.0) == 1.0
    assert confidence_from_logprobs([-9.0], -4.0) == 0.0
    assert confidence_from_logprobs([], -4.0) == 0.0
    with pytest.raises(ConfigError, match="floor"):
        confidence_from_logprobs([-1.0], 0.0)


def test_the_expected_cost_is_what_a_simulation_pays():
    rng = np.random.default_rng(0)
    up = rng.random(100_000) < 0.3
    assert np.where(up, 1.0 + 20.0, 1.0).mean() == pytest.approx(expected_cost(0.3, 1.0, 20.0), rel=0.02)


def test_the_economic_rule_is_the_best_rule():
    rng = np.random.default_rng(1)
    small, large, price, value = rng.random(2000), rng.random(2000), rng.random(2000), 2.0
    rule = worth_escalating(small, large, value, price)
    earned = np.where(rule, value * large - price, value * small)
    assert (earned >= np.maximum(value * large - price, value * small) - 1e-12).all()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_the_share_holds_whatever_the_unit_and_after_a_drift(share):
    rng = np.random.default_rng(2)
    stream = np.concatenate([rng.normal(size=3000), 50 + 10 * rng.normal(size=3000)])
    policy = UploadPolicy(share)
    sent = np.array([policy.decide(u, rng) for u in stream])
    assert sent.mean() == pytest.approx(share, abs=0.015)
    assert sent[3000:3020].mean() > 2 * share  # right after the change more goes up
    high = stream[:3000] > np.quantile(stream[:3000], 0.7)
    assert sent[:3000][high].mean() > 2 * sent[:3000][~high].mean()


def test_no_share_and_all_of_it():
    rng = np.random.default_rng(3)
    assert sum(UploadPolicy(0.0, explore=0.0).decide(u, rng) for u in [0.0] * 50) == 0
    policy = UploadPolicy(1.0, explore=1.0)
    assert all(policy.decide(u, rng) for u in rng.random(50))
    with pytest.raises(ConfigError, match="share"):
        UploadPolicy(1.5)
    with pytest.raises(ConfigError, match="rate"):
        UploadPolicy(rate=0)
    with pytest.raises(ConfigError, match="settle"):
        UploadPolicy(settle=0)


def test_the_share_of_the_whole_stream_holds_while_uncertainty_keeps_rising():
    rng = np.random.default_rng(8)
    policy = UploadPolicy(0.1)
    sent = [policy.decide(i / 300 + rng.random(), rng) for i in range(1500)]
    assert np.mean(sent) == pytest.approx(0.1, abs=0.01)
    assert policy.sent == sum(sent)
