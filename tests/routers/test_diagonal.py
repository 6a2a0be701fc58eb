"""Counters on edges: equal to LinUCB where contexts are one-hot, and the same whatever the order or the replica."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.errors import ConfigError, ShapeError
from polyroute.policies.explore import UCB
from polyroute.routers.diagonal import Diagonal
from polyroute.types import Candidate, Objective, Outcomes, Query
from tests.routers.tables import table_of


class LinUCB:
    """The textbook, for comparison: one inverse a candidate."""

    def __init__(self, p, m, ridge):
        self.inverse, self.score = np.array([np.eye(p) / ridge] * m), np.zeros((m, p))

    def bounds(self, x, alpha):
        theta = np.einsum("mpq,mq->mp", self.inverse, self.score)
        return theta @ x + alpha * np.sqrt(np.einsum("p,mpq,q->m", x, self.inverse, x))

    def learn(self, x, j, y):
        a = self.inverse[j] @ x
        self.inverse[j] -= np.outer(a, a) / (1 + x @ a)
        self.score[j] += y * x


def one(query, pool, j, y):
    seen = np.zeros((1, len(pool)), bool)
    seen[0, j] = True
    return Outcomes([query], pool, {"quality": np.where(seen, y, np.nan)}, seen)


def contexts(n, p, rng, overlapping=False):
    x = np.eye(p)[rng.integers(p, size=n)]
    if overlapping:
        x = np.where(rng.random((n, p)) < 0.6, 0.0, rng.random((n, p))) + 1e-3
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def test_with_one_hot_contexts_it_chooses_as_linucb_and_earns_the_same():
    rng = np.random.default_rng(0)
    p, m, n, ridge, alpha = 5, 4, 400, 0.05, 0.1
    x, pool = contexts(n, p, rng), [Candidate(f"m{j}") for j in range(m)]
    reward = (rng.random((n, m)) < rng.random((p, m))[x.argmax(axis=1)]).astype(float)
    router, textbook = Diagonal(centre=0.0, kappa=ridge, noise=1.0), LinUCB(p, m, ridge)
    for i in range(n):
        query = Query(f"q{i}", embedding=x[i])
        estimates = router.predict([query], pool)
        objective, allowed = Objective({"quality": 1.0}), np.ones((1, m), bool)
        chosen = int(UCB(alpha).decide(estimates, objective, allowed, rng).index[0, 0])
        bound = estimates["quality"].mean + alpha * estimates["quality"].std
        assert bound[0] == pytest.approx(textbook.bounds(x[i].astype(float), alpha))
        assert bound[0, chosen] == pytest.approx(textbook.bounds(x[i].astype(float), alpha).max())
        router.update(one(query, pool, chosen, reward[i, chosen]))
        textbook.learn(x[i].astype(float), chosen, reward[i, chosen])


def test_overlapping_contexts_by_hand():
    pool = [Candidate("m0")]
    w = np.array([[0.6, 0.8, 0.0]], np.float32)
    router = Diagonal(centre=0.5, kappa=2.0, noise=1.0)
    router.update(one(Query("a", embedding=w[0]), pool, 0, 1.0))
    mean, std = router.predict([Query("b", embedding=w[0])], pool)["quality"]
    assert mean[0, 0] == pytest.approx(0.5 + 0.6 * 0.3 / 2.36 + 0.8 * 0.4 / 2.64)
    assert std[0, 0] == pytest.approx(np.sqrt(0.36 / 2.36 + 0.64 / 2.64))


def test_shards_merged_in_any_order_are_one_serial_run():
    rng = np.random.default_rng(1)
    y = np.where(rng.random((300, 5)) < 0.3, rng.random((300, 5)), np.nan)
    table = table_of(contexts(300, 7, rng, overlapping=True), y)
    serial, base = Diagonal(), Diagonal()
    serial.update(table)
    base.update(table.take(np.arange(100)))
    shards = []
    for part in (np.arange(100, 150), np.arange(150, 300)):
        params, arrays = base.state()
        shard = Diagonal.from_state(params, {k: v.copy() for k, v in arrays.items()})
        shard.update(table.take(part).among(["m3", "m0", "m1", "m4", "m2"]))
        shards.append(shard)
    merged = shards[1]
    merged.merge(shards[0], base)
    expected = serial.predict(table.queries, table.pool)["quality"]
    found = merged.predict(table.queries, table.pool)["quality"]
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, atol=1e-12)


def test_a_merge_without_a_base_brings_in_new_candidates():
    rng = np.random.default_rng(2)
    table = table_of(contexts(40, 3, rng), rng.random((40, 2)))
    one_, other, both = Diagonal(), Diagonal(), Diagonal()
    one_.update(table.among(["m0"]))
    other.update(table.among(["m1"]))
    both.update(table)
    one_.merge(other)
    one_.merge(Diagonal())
    found, expected = (r.predict(table.queries, table.pool)["quality"] for r in (one_, both))
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.std, expected.std)


def test_what_does_not_count_the_same_is_not_merged():
    router, other = Diagonal(), Diagonal(centre=0.0)
    table = table_of(np.eye(3, dtype=np.float32), np.ones((3, 1)))
    router.update(table)
    other.update(table)
    with pytest.raises(ConfigError, match=r"centre: expected 0.5, as here, got 0.0"):
        router.merge(other)
    wider = Diagonal()
    wider.update(table_of(np.eye(4, dtype=np.float32), np.ones((4, 1))))
    with pytest.raises(ShapeError, match="edges"):
        router.merge(wider)


def test_doubt_falls_with_outcomes_and_noise_is_measured():
    rng = np.random.default_rng(3)
    pool = [Candidate("m0"), Candidate("new")]
    router = Diagonal(kappa=1.0)
    before = router.predict([Query("q", embedding=np.ones(1))], pool)["quality"]
    assert before.mean.tolist() == [[0.5, 0.5]]
    assert before.std == pytest.approx(0.5)  # the most a number in 0..1 varies
    y = rng.normal(0.7, 0.05, size=(400, 1)).clip(0, 1)
    router.update(table_of(np.ones((400, 1), np.float32), y))
    mean, std = router.predict([Query("q", embedding=np.ones(1))], pool)["quality"]
    assert mean[0, 0] == pytest.approx(0.7, abs=0.01)
    assert std[0, 0] == pytest.approx(0.05 / 20, rel=0.3)
    assert std[0, 1] > 0.04


@pytest.mark.parametrize("wrong", [{"kappa": 0.0}, {"noise": 0.0}, {"centre": np.inf}])
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Diagonal(**wrong)
