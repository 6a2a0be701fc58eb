"""Soft targets: shared credit, gradients at rest, agreement edges that find the strong one's errors."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, OutcomesError, ShapeError
from polyroute.flows.vote import winners
from polyroute.routers.soft_targets import SoftTargets, agreement, hard, shares, soft, solved
from tests.routers.tables import table_of, toy


def test_all_who_were_right_share_the_credit():
    y, seen = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), np.ones((3, 3), dtype=bool)
    seen[2, 2] = False
    target = soft(y, seen, 0.05)
    np.testing.assert_allclose(target, [[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(hard(y, seen), [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert shares(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool)).tolist() == [[0.0, 0.0]]


def test_agreement_is_between_two_who_answered():
    alike = agreement(np.array([[0, 0, 1, -1, -1]]))[0]
    assert alike[0, 1] == alike[1, 0] == 1
    assert alike.sum() == 2


def test_without_features_the_shares_are_the_mean_target():
    rng = np.random.default_rng(0)
    target = soft(rng.integers(2, size=(200, 3)).astype(float), np.ones((200, 3), dtype=bool), 0.2)
    weight, _ = solved(
        np.ones((200, 1)), target, np.ones((200, 3), dtype=bool), np.zeros((200, 3, 3)), np.array([1e-9]), None
    )
    np.testing.assert_allclose(shares(weight, np.ones((1, 3), dtype=bool))[0], target.mean(axis=0), atol=1e-4)


def panel(n, rng):
    """One strong agent, wrong exactly where three weak ones, otherwise guessing, agree against it."""
    truth, slip = rng.integers(4, size=n), rng.random(n) < 0.15
    guess = rng.integers(4, size=(n, 3))
    said = np.column_stack([np.where(slip, (truth + 1) % 4, truth), np.where(slip[:, None], truth[:, None], guess)])
    return said, (said == truth[:, None]).astype(float)


def test_agreement_against_the_strong_one_is_learned():
    said, right = panel(600, np.random.default_rng(1))
    x = np.random.default_rng(2).normal(size=(600, 4)).astype(np.float32)
    train = table_of(x[:400], right[:400])
    test, rows = table_of(x[400:], right[400:], prefix="r"), np.arange(200)
    router = SoftTargets(agree=1e-4).fit(train, said[:400])
    voted = right[400:][rows, winners(said[400:], router.weights(test.queries, test.pool, said[400:]))].mean()
    assert voted > right[400:, 0].mean() + 0.1
    share = router.predict(test.queries, test.pool)["share"].mean
    assert (share.argmax(axis=1) == 0).all()
    np.testing.assert_allclose(share.sum(axis=1), 1.0)


def test_weights_of_part_of_the_pool_sum_to_one_and_skip_the_silent():
    said, right = panel(300, np.random.default_rng(1))
    table = table_of(np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32), right)
    router = SoftTargets().fit(table, said)
    some = said[:5, [2, 0]].copy()
    some[0, 1] = -1
    weight = router.weights(table.queries[:5], [table.pool[2], table.pool[0]], some)
    np.testing.assert_allclose(weight.sum(axis=1), 1.0)
    assert weight[0].tolist() == [1.0, 0.0]
    restored = SoftTargets.from_state(*router.state())
    np.testing.assert_array_equal(restored.weights(table.queries, table.pool, said),
                                  router.weights(table.queries, table.pool, said))  # fmt: skip


def test_where_all_did_alike_shares_are_equal():
    table = table_of(np.eye(6, dtype=np.float32), np.ones((6, 3)))
    share = SoftTargets().fit(table).predict(table.queries, table.pool)["share"].mean
    np.testing.assert_allclose(share, 1 / 3, atol=1e-3)


def test_misuse_is_told():
    table = toy()
    for settings in ({"temperature": 0}, {"rank": -1}, {"targets": "warm"}, {"agree": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            SoftTargets(**settings)
    with pytest.raises(OutcomesError, match="fitted without"):
        SoftTargets().fit(table).weights(table.queries, table.pool, np.zeros((60, 4), int))
    with pytest.raises(ShapeError, match="answers"):
        SoftTargets().fit(table, np.zeros((60, 3), int))
    fitted = SoftTargets().fit(table, np.zeros((60, 4), int))
    with pytest.raises(ShapeError, match="answers"):
        fitted.weights(table.queries, table.pool, np.zeros((60, 3), int))
