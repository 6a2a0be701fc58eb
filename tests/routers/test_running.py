"""A running mean by context: an exponential moving average, shrunk to what the candidate does elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.routers.running import RunningMean
from polyroute.types import Candidate, Query
from tests.routers.tables import table_of

CONTEXTS = np.eye(3, dtype=np.float32)


def asked(router, context, *names):
    return router.predict([Query("q", embedding=CONTEXTS[context])], [Candidate(n) for n in names])["quality"].mean[0]


def test_it_is_the_exponential_moving_average_of_its_own_context():
    rng = np.random.default_rng(0)
    key, y = rng.integers(2, size=500), rng.random((500, 1))
    router = RunningMean("quality", 0.5, kappa=1e-9, memory=50.0, keyed=True)
    for start in range(0, 500, 20):
        rows = slice(start, start + 20)
        router.update(table_of(CONTEXTS[key[rows]], y[rows]))
    for k in range(2):
        average = 0.5
        for value in y[key == k, 0]:
            average += 0.02 * (value - average)
        assert asked(router, k, "m0")[0] == pytest.approx(average, abs=0.01)  # apart from what is left of its start


def test_a_context_is_shrunk_to_the_candidate_and_that_to_everyone():
    router = RunningMean("quality", 0.5, kappa=2.0, memory=1e9, keyed=True)
    assert asked(router, 0, "m0") == pytest.approx([0.5])
    router.update(table_of(CONTEXTS[[0, 0, 1, 1]], np.array([[1.0, np.nan], [1.0, np.nan], [0.0, 0.0], [0.0, np.nan]])))
    everyone = (2.0 + 2 * 0.5) / (5 + 2)
    m0 = (2.0 + 2 * everyone) / (4 + 2)
    assert asked(router, 0, "m0")[0] == pytest.approx((2.0 + 2 * m0) / 4)
    assert asked(router, 1, "m0")[0] == pytest.approx((0.0 + 2 * m0) / 4)
    assert asked(router, 2, "m0")[0] == pytest.approx(m0)
    assert asked(router, 1, "m1", "new") == pytest.approx([(0 + 2 * (2 * everyone / 3)) / 3, everyone])


def test_learning_in_parts_is_learning_at_once():
    rng = np.random.default_rng(1)
    table = table_of(
        CONTEXTS[rng.integers(3, size=90)], np.where(rng.random((90, 4)) < 0.5, rng.random((90, 4)), np.nan)
    )
    whole, parts = (RunningMean("quality", 0.5, memory=20.0, keyed=True) for _ in range(2))
    whole.update(table)
    for rows in np.split(np.arange(90), [10, 11, 60]):
        parts.update(table.take(rows))
    np.testing.assert_allclose(asked(parts, 1, "m0", "m3"), asked(whole, 1, "m0", "m3"), rtol=1e-12)


def test_without_keys_the_context_does_not_matter():
    router = RunningMean("quality", 0.5)
    router.update(table_of(CONTEXTS, np.array([[1.0], [0.0], [1.0]])))
    assert asked(router, 0, "m0") == asked(router, 1, "m0")
    assert router.state()[1]["sums"].shape == (2, 1)
