import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.policies.pools import BetaCounter, BytesPerToken, PoolSplit, can_escalate, spend_action


def test_bytes_per_token_are_learned_for_each_category():
    counted, rng = BytesPerToken(), np.random.default_rng(0)
    assert counted.tokens(400.0) == 100.0
    for _ in range(200):
        size = float(rng.lognormal(6, 1))
        counted.update(size, size / 3.0 * rng.lognormal(0, 0.1), "code")
        counted.update(size, size / 2.0, "chinese")
    assert counted.tokens(3000.0, "code") == pytest.approx(1000, rel=0.05)
    assert counted.tokens(3000.0, "chinese") == pytest.approx(1500)
    assert counted.tokens(3000.0, "other") == 750.0
    counted.update(0, 0, "other")
    assert counted.tokens(3000.0, "other") == 750.0


def test_a_request_goes_where_it_fits_and_is_queued_again_where_it_outgrows():
    split = PoolSplit(4096)
    assert split.pool(4000, 96) == "short"
    assert split.pool(4000, 97) == "long"
    assert not split.overflow(4000, 96)
    assert split.overflow(4000, 97)


def test_failures_are_counted_over_a_window():
    counter = BetaCounter(window=10)
    assert counter.rate("a") == pytest.approx((0.5, np.sqrt(1 / 12)))
    for failed in [True] * 10 + [False] * 8:
        counter.update("a", failed)
    assert counter.rate("a")[0] == pytest.approx(3 / 12)
    assert counter.rate("b")[0] == 0.5


def test_escalation_needs_time_for_the_queue():
    assert can_escalate(10, 8, 1.0, 2.0)
    assert not can_escalate(10, 7, 1.0, 2.0)


def test_spend_is_answered_in_steps():
    assert [spend_action(x, 100.0) for x in (150, 200, 300, 700)] == ["go on", "warn", "cheaper", "stop"]
    with pytest.raises(ConfigError):
        spend_action(1.0, 0.0)


def test_settings_are_checked():
    for make in (lambda: BytesPerToken(0.0), lambda: BytesPerToken(typical=0.0), lambda: BetaCounter(0)):
        with pytest.raises(ConfigError):
            make()
