"""The verifier, the plan and the router that holds them, on tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute import artefact
from polyroute.errors import ConfigError, NotFittedError, OutcomesError, UnknownCandidateError
from polyroute.offline.calibration import expected_calibration_error
from polyroute.routers.cascade import Cascade
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.stopping import GRID, Stopping, between, subsets
from polyroute.routers.verifier import Evidence, Verifier
from polyroute.types import Candidate, Outcomes, Query

N = 1200


def world(seed: int = 0, n: int = N, tell: float = 2.0):
    """Two candidates, cheap and dear; one feature of the cheap one's answer tells whether it is right."""
    rng = np.random.default_rng(seed)
    right = (rng.random((n, 2)) < [0.6, 0.9]).astype(float)
    look = tell * (right - 0.5) + rng.normal(size=(n, 2))
    features = np.stack([np.ones((n, 2)), look], axis=2)
    same = (right[:, 0] == right[:, 1]) * 1.0
    agreement = np.zeros((n, 2, 2))
    agreement[:, 0, 1] = agreement[:, 1, 0] = same
    queries = [Query(f"q{i}", embedding=x) for i, x in enumerate(rng.normal(size=(n, 4)).astype(np.float32))]
    cost = np.tile([0.05, 1.0], (n, 1))
    outcomes = Outcomes(queries, [Candidate("cheap"), Candidate("dear")], {"quality": right, "cost": cost},
                        np.ones((n, 2), bool))  # fmt: skip
    return outcomes, Evidence(features, agreement, 1)


def fitted(**options):
    outcomes, evidence = world()
    return Cascade(KNN(), Linear("cost", rank=None), **options).fit(outcomes, evidence)


def test_the_verifier_ranks_and_means_what_it_says():
    outcomes, evidence = world()
    test, unseen = world(1)
    expected = np.tile([0.6, 0.9], (N, 1))
    verifier = Verifier().fit(expected, evidence, outcomes.values["quality"], ["cheap", "dear"], np.arange(N) % 5)
    alone = np.tile([True, False], (N, 1))
    p = verifier.right(expected, unseen, alone, ["cheap", "dear"])
    assert np.isnan(p[:, 1]).all()
    y = test.values["quality"][:, 0]
    assert np.mean(p[y == 1, 0][:400, None] > p[y == 0, 0][None, :400]) > 0.88  # the feature alone has 0.92
    assert expected_calibration_error(p[:, 0], y) < 0.05
    both = verifier.right(expected, unseen, np.ones((N, 2), bool), ["cheap", "dear"])
    agree = unseen.agreement[:, 0, 1] == 1
    assert both[agree, 0].mean() > p[agree, 0].mean() + 0.05  # a second opinion counts


def test_what_was_not_tried_is_not_read():
    _, evidence = world()
    cascade = fitted()
    outcomes, _ = world()
    said = cascade.predict(outcomes.queries, outcomes.pool)
    tried = np.tile([True, False], (N, 1))
    spoilt = Evidence(evidence.features.copy(), evidence.agreement.copy(), 1)
    spoilt.features[:, 1], spoilt.agreement[:, 0, 1], spoilt.agreement[:, 1, 0] = 77.0, 0.5, 0.5
    one, other = (
        cascade.decide(cascade.read(said["quality"].mean, said["cost"].mean, e, tried, outcomes.pool), 0.1)
        for e in (evidence, spoilt)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_plan_escalates_where_the_gain_exceeds_the_price():
    n = 4000
    rng = np.random.default_rng(2)
    p = rng.random(n)
    quality = np.stack([rng.random(n) < p, rng.random(n) < 0.9], axis=1).astype(float)
    right = np.full((4, n, 2), np.nan)
    right[1, :, 0], right[2, :, 1], right[3] = p, 0.9, np.stack([p, np.full(n, 0.9)], axis=1)
    evidence = Evidence(np.ones((n, 2, 1)), np.zeros((n, 2, 2)), 1)
    cost = np.tile([0.0, 1.0], (n, 1))
    expected = np.tile([0.5, 0.9], (n, 1))
    plan = Stopping(l2=1.0).fit(expected, evidence, right, quality, cost, cost)
    tried = np.tile([True, False], (n, 1))
    for trade_off in (0.05, 0.2, 0.4):
        value = plan.worth(plan.read(expected, evidence, right[1], tried), tried, trade_off)[:, 1] - trade_off
        best = np.maximum(p, 0.9) - p > trade_off  # closed form: the better of the two is kept
        assert np.mean((value > p) == best) > 0.93


def test_between_points_of_the_grid_the_weights_are_mixed():
    weight = np.arange(len(GRID), dtype=float)[None]
    assert between(weight, GRID[3]) == pytest.approx(3)
    assert between(weight, (GRID[3] + GRID[4]) / 2) == pytest.approx(3.5)
    assert between(weight, 1e9) == pytest.approx(len(GRID) - 1)
    assert len(subsets(4)) == 16


def test_a_price_decides_who_is_asked():
    cascade = fitted()
    test, evidence = world(3)
    said = cascade.predict(test.queries, test.pool)

    def share(trade_off, tried):
        reading = cascade.read(said["quality"].mean, said["cost"].mean, evidence, tried, test.pool)
        return cascade.decide(reading, trade_off)

    first, cheap = np.zeros((N, 2), bool), np.tile([True, False], (N, 1))
    assert (share(np.inf, first).ask == 0).all()
    assert (share(np.inf, cheap).ask == -1).all()
    assert (share(0.2, first).ask == 0).mean() > 0.95
    asked = [(share(t, cheap).ask == 1).mean() for t in (0.0, 0.1, 0.3, 0.6, 2.0)]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] > 0.5
    assert asked[-1] < 0.02
    verdict = share(0.1, cheap)
    wrong = test.values["quality"][:, 0] == 0
    assert (verdict.ask[wrong] == 1).mean() > 2 * (verdict.ask[~wrong] == 1).mean()
    assert (verdict.keep == 0).all()


def test_a_pool_without_a_rung_and_one_in_another_order():
    cascade = fitted()
    test, evidence = world(3)
    said = cascade.predict(test.queries, test.pool)
    tried = np.tile([True, False], (N, 1))
    straight = cascade.decide(cascade.read(said["quality"].mean, said["cost"].mean, evidence, tried, test.pool), 0.2)
    turned = cascade.decide(
        cascade.read(said["quality"].mean[:, ::-1], said["cost"].mean[:, ::-1], evidence.among(np.array([1, 0])),
                     tried[:, ::-1], test.pool[::-1]), 0.2,
    )  # fmt: skip
    np.testing.assert_array_equal(np.where(straight.ask == 1, 0, straight.ask), turned.ask)
    alone = cascade.read(said["quality"].mean[:, :1], said["cost"].mean[:, :1], evidence.among(np.array([0])),
                         tried[:, :1], test.pool[:1])  # fmt: skip
    assert (cascade.decide(alone, 0.0).ask == -1).all()
    with pytest.raises(UnknownCandidateError, match="'cheap', 'dear'"):
        cascade.read(np.ones((1, 1)), np.ones((1, 1)), evidence.take([0]), np.zeros((1, 1), bool), [Candidate("x")])


def test_saved_and_loaded_it_decides_alike(tmp_path):
    cascade = fitted()
    test, evidence = world(3)
    artefact.save(cascade, tmp_path / "c.npz", features="toy-1", pool=test.pool)
    loaded = artefact.load(tmp_path / "c.npz").router
    tried = np.tile([True, False], (N, 1))
    results = []
    for router in (cascade, loaded):
        said = router.predict(test.queries, test.pool)
        reading = router.read(said["quality"].mean, said["cost"].mean, evidence, tried, test.pool)
        results.append(router.decide(reading, 0.2))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be():
    outcomes, evidence = world(n=20)
    with pytest.raises(ConfigError, match="rungs"):
        Cascade(KNN(), Linear("cost"), rungs=7)
    with pytest.raises(NotFittedError):
        Verifier().right(np.ones((1, 1)), evidence, np.ones((1, 1), bool), ["a"])
    plain = Cascade(KNN(), Linear("cost")).fit(outcomes)
    with pytest.raises(OutcomesError, match="evidence"):
        plain.read(np.ones((20, 2)), np.ones((20, 2)), evidence, np.zeros((20, 2), bool), outcomes.pool)
    with pytest.raises(OutcomesError, match="answers with a score"):
        Verifier().fit(np.ones((20, 2)), evidence, np.full((20, 2), np.nan), ["a", "b"], np.arange(20))
