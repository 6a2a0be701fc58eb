from __future__ import annotations

import numpy as np
import pytest

from polyroute import artefact
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, NotFittedError, OutcomesError
from polyroute.routers.conformal import Conformal, limits_of
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.types import Candidate, Outcomes
from tests.routers.tables import queries_of, table_of


@pytest.mark.parametrize("r", [1, 4, 9, 19, 100])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_of_all_places_a_new_residual_may_take_enough_are_inside(r, level):
    residuals = np.arange(r, dtype=float)
    places = np.arange(r + 1) - 0.5  # below the first, between each two, above the last
    low, high = limits_of(residuals, 0.0, level)
    assert (places <= high).mean() >= level
    assert low == -np.inf
    if np.isfinite(high) and high > 0:
        assert (places <= high - 1).mean() < level  # and no wider than it must be
    low, high = limits_of(residuals, (1 - level) / 2, (1 + level) / 2)
    assert ((places >= low) & (places <= high)).mean() >= level


def spread_out(n: int, seed: int) -> Outcomes:
    """Costs whose scatter grows with their mean, 0.5 to 1.5 times a line in the embedding; m1 is ten times dearer."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    mean = np.exp(x[:, :1] / 2) * [1e-3, 1e-2]
    return table_of(x, mean * rng.uniform(0.5, 1.5, size=(n, 2)), "cost")


def test_limits_hold_as_often_as_promised_for_each_candidate():
    covered, exceeded = [], []
    for seed in range(8):
        train, new = spread_out(400, seed), spread_out(400, 100 + seed)
        router = Conformal(Linear("cost", "ridge")).fit(train)
        low, high = router.bounds(new.queries, new.pool, 0.8)
        came = new.values["cost"]
        covered.append(((came >= low) & (came <= high)).mean(axis=0))
        exceeded.append((came > router.upper(new.queries, new.pool, 0.9)).mean(axis=0))
        assert (low >= 0).all()
    assert np.mean(covered, axis=0) == pytest.approx([0.8, 0.8], abs=0.035)
    assert np.mean(exceeded, axis=0) == pytest.approx([0.1, 0.1], abs=0.03)


def test_limits_hold_though_the_router_is_bad():
    train, new = spread_out(400, 1), spread_out(2000, 2)
    router = Conformal(Constant("cost", 5e-3, 1e-3), relative=False).fit(train)
    low, high = router.bounds(new.queries, new.pool, 0.9)
    came = new.values["cost"]
    assert ((came >= low) & (came <= high)).mean() == pytest.approx(0.9, abs=0.04)


def test_a_better_router_has_narrower_limits():
    train, new = spread_out(400, 3), spread_out(200, 4)
    width = {}
    for name, inner in {"line": Linear("cost", "ridge"), "constant": Constant("cost", 5e-3, 1e-3)}.items():
        low, high = Conformal(inner, relative=False).fit(train).bounds(new.queries, new.pool)
        width[name] = (high - low).mean()
    assert width["line"] < 0.8 * width["constant"]


def test_the_held_out_are_whole_groups_the_judge_has_not_seen():
    table = synthetic_outcomes(200, 2, rng=np.random.default_rng(0)).outcomes
    seen: list[set[str]] = []

    class Spy(KNN):
        def fit(self, outcomes):
            seen.append(set(outcomes.labels["group"].tolist()))
            return super().fit(outcomes)

        def predict(self, queries, pool):
            held = {g for q, g in zip(table.queries, table.labels["group"], strict=True) if q in queries}
            assert not held & seen[-1]
            return super().predict(queries, pool)

    Conformal(Spy(metric="cost")).fit(table)
    assert seen[0] < seen[1] == set(table.labels["group"].tolist())


def test_too_few_outcomes_give_no_false_promise():
    train = spread_out(12, 5)
    router = Conformal(Constant("cost", 5e-3, 1e-3)).fit(train)
    assert np.isinf(router.upper(train.queries, train.pool, 0.99)).all()
    low, high = router.bounds(train.queries, train.pool, 0.99)
    assert (low == 0).all()
    assert np.isinf(high).all()
    assert np.isfinite(router.upper(train.queries, train.pool, 0.5)).all()


def test_a_stranger_gets_the_limits_of_all_together():
    train = spread_out(400, 6)
    router = Conformal(Constant("cost", 5e-3, 1e-3), relative=False).fit(train)
    queries = queries_of(np.ones((1, 3)))
    own, other = router.upper(queries, [train.pool[1], Candidate("new")])[0]
    assert np.isfinite(other) and other < own  # noqa: PT018 the dear model's limit is above the pooled one


def test_limits_survive_saving(tmp_path):
    train = spread_out(60, 7)
    router = Conformal(Linear("cost", "ridge"), share=0.4).fit(train)
    artefact.save(router, tmp_path / "r.npz", features="toy-1", pool=train.pool)
    again = artefact.load(tmp_path / "r.npz").router
    np.testing.assert_array_equal(router.bounds(train.queries, train.pool), again.bounds(train.queries, train.pool))


def test_mistakes_are_named():
    train = spread_out(20, 8)
    for build in (lambda: Conformal(KNN(), share=0.0), lambda: Conformal(KNN(metric="cost")).fit(train).upper(
            train.queries, train.pool, 1.0)):  # fmt: skip
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(OutcomesError, match="expected a router that predicts 'latency', got"):
        Conformal(KNN(metric="cost"), "latency").fit(train)
    with pytest.raises(NotFittedError):
        Conformal(KNN(metric="cost")).bounds(train.queries, train.pool)
    assert Conformal(KNN(metric="cost")).fit(train).bounds([], train.pool).low.shape == (0, 2)
