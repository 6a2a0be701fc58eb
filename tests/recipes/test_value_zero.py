"""V0: a newcomer described by its answers is ranked, routed to at a price, and given rollouts."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, ShapeError
from polyroute.offline.ranking import auc
from polyroute.recipes.value_zero import describe, objective, rollouts, value_zero
from polyroute.types import Estimate


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(5)).outcomes
    split = found.labels["split"]
    return found.take(split == "train"), found.take(split == "test")


def test_a_model_known_by_its_answers_alone(world):
    train, test = world
    newcomer = train.pool[1]
    router = value_zero().fit(train.among([c.id for k, c in enumerate(train.pool) if k != 1]))
    before = router.predict(test.queries, [newcomer])["quality"].mean[:, 0]
    few = train.take(np.arange(120))
    describe(router, newcomer, few.queries, few.values["quality"][:, 1])
    after = router.predict(test.queries, [newcomer])["quality"].mean[:, 0]
    y = test.values["quality"][:, 1]
    assert auc(after, y) > auc(before, y)
    given = rollouts(router, newcomer, test.queries, 8 * len(test))
    assert given.sum() == 8 * len(test)
    assert given[np.argmax(after)] < given[np.argmin(np.abs(after - 0.3))]  # nothing to learn where it always succeeds
    with pytest.raises(ShapeError, match="right"):
        describe(router, newcomer, few.queries, [1.0])


def test_its_label_weighs_success_against_cost():
    estimates = {"quality": Estimate(np.array([[0.8, 0.5]])), "cost": Estimate(np.array([[0.02, 0.0]]))}
    assert objective(1.0, 0.02).utility(estimates)[0] == pytest.approx([0.8, 0.5])
    label = 0.6 * np.array([0.8, 0.5]) + 0.4 * (1 - np.array([1.0, 0.0]))
    assert objective(0.6, 0.02).utility(estimates)[0] + 0.4 == pytest.approx(label)
    with pytest.raises(ConfigError, match="share"):
        objective(1.5, 0.02)
