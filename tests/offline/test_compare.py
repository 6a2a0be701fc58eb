from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, OutcomesError, UnknownNameError
from polyroute.offline.compare import compare, compare_pair, hull_band, resamples_of
from polyroute.offline.evaluate import Expected, baseline_quality, curves_of, estimated_cost, expected_by, pair_gains
from polyroute.offline.frontier import reference_cost, scale_of, summarise
from polyroute.offline.split import part
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.routers.mix import Together
from polyroute.types import Outcomes


@pytest.fixture(scope="module")
def drawn():
    return synthetic_outcomes(600, 4, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def compared(drawn):
    """Who knows the probability of each outcome, and the baselines, on the test split."""
    outcomes = drawn.outcomes
    train, test = part(outcomes, "train"), part(outcomes, "test")
    success = drawn.success[outcomes.labels["split"] == "test"]
    quality = {"truth": success, **baseline_quality(train, test)}
    curves = curves_of(Expected(quality, test.values["cost"], reference_cost(train)), test, train)
    counts = resamples_of(test, np.random.default_rng(0), 200)
    return test, curves, counts, {row.name: row for row in compare(curves, test, counts, against=("random mix",))}


def test_the_rows_stand_in_the_order_they_must(compared):
    rows = compared[3]
    aiq = {name: row.summary.aiq for name, row in rows.items()}
    assert list(aiq) == ["truth", "shrunk kNN", "data-set oracle", "best single", "cheapest", "random mix", "oracle"]
    assert aiq["oracle"] > aiq["truth"] > aiq["shrunk kNN"] > aiq["random mix"] >= aiq["best single"]
    assert aiq["random mix"] > aiq["cheapest"]


def test_each_number_is_that_of_its_own_curve(compared):
    test, curves, _, rows = compared
    scale = scale_of(test.values["quality"].mean(axis=0), test.values["cost"].mean(axis=0))
    for curve in curves:
        alone = summarise(curve.quality.mean(axis=1), curve.cost.mean(axis=1), scale)
        np.testing.assert_allclose(rows[curve.name].summary, alone)


def test_intervals_hold_their_number_and_pairing_narrows_the_difference(compared):
    rows = compared[3]
    for row in rows.values():
        low, high = row.intervals["aiq"]
        assert low < row.summary.aiq < high
    truth, mix = rows["truth"], rows["random mix"]
    gained = truth.difference["random mix"]
    assert gained.low > 0
    assert gained.value == pytest.approx(truth.summary.aiq - mix.summary.aiq)
    unpaired = np.hypot(*(np.ptp(row.intervals["aiq"]) for row in (truth, mix)))
    assert gained.high - gained.low < 0.7 * unpaired
    assert mix.difference == {}


def test_resampling_equals_repeating_rows(compared):
    test, curves, counts, _ = compared
    one = compare(curves[:1], test, counts[:2])[0]
    repeat = np.repeat(np.arange(len(test)), counts[1].astype(int))
    again = test.take(repeat)
    alone = summarise(
        curves[0].quality[:, repeat].mean(axis=1), curves[0].cost[:, repeat].mean(axis=1),
        scale_of(again.values["quality"].mean(axis=0), again.values["cost"].mean(axis=0)),
    )  # fmt: skip
    assert one.intervals["aiq"] == pytest.approx((alone.aiq, alone.aiq))


def test_resamples_draw_groups_whole_and_begin_with_the_table_itself(compared):
    test, _, counts, _ = compared
    assert (counts[0] == 1).all()
    for group in set(test.labels["group"]):
        rows = counts[:, test.labels["group"] == group]
        assert (rows == rows[:, :1]).all()
    assert counts.max() > 1


def test_the_band_holds_the_hull(compared):
    test, curves, counts, rows = compared
    means = test.values["cost"].mean(axis=0)
    grid = np.linspace(means.min(), means.max(), 12)
    low, high = hull_band(curves[0], test, counts, grid)
    assert (low < high).all()
    assert low.mean() < rows["truth"].summary.aiq < high.mean()


def test_an_interval_for_aiq_holds_the_truth_as_often_as_it_says():
    """A mix of two models of known quality has AIQ (q1 + q2) / 2 where the second is the better."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(60):
        quality = (rng.random((80, 2)) < [0.3, 0.8]).astype(float)
        cost = np.tile([1.0, 2.0], (80, 1))
        known = synthetic_outcomes(80, 2, 2, rng=rng).outcomes
        test = Outcomes(known.queries, known.pool, {"quality": quality, "cost": cost}, known.observed)
        curves = curves_of(Expected({}, cost, 1.0), test)
        (row,) = compare([curves[2]], test, resamples_of(test, rng, 80))
        low, high = row.intervals["aiq"]
        hits += low <= 0.55 <= high
    assert 52 <= hits <= 60


def test_a_pair_gets_its_own_table(drawn):
    outcomes = drawn.outcomes.among(["model-0", "model-3"])
    expected = Expected({"truth": drawn.success[:, [0, 3]]}, outcomes.values["cost"], 1.0)
    gains, truth = pair_gains(expected, outcomes)
    counts = resamples_of(outcomes, np.random.default_rng(0), 100)
    found, intervals = compare_pair(gains["truth"], truth, counts)
    assert intervals["apgr"].low < found.apgr < intervals["apgr"].high
    assert found.apgr > 0.5
    assert found.cpt_50 < 0.5
    assert compare_pair(gains["random calls"], truth, counts)[0] == pytest.approx((0.5, 0.5, 0.8))
    assert pair_gains(Expected({}, outcomes.values["cost"], 1.0), drawn.outcomes) is None


def test_a_router_without_cost_gets_the_estimate_of_another(drawn):
    train, test = part(drawn.outcomes, "train"), part(drawn.outcomes, "test")
    learned = expected_by(KNN().fit(train), "knn", train, test, 2.0)
    np.testing.assert_array_equal(learned.cost, estimated_cost(train, test))
    assert learned.reference == 2.0
    constant = Constant("cost", 0.5, 0.0)
    own = expected_by(Together([KNN().fit(train), constant]), "knn", train, test, 2.0)
    assert (own.cost == 0.5).all()
    with pytest.raises(ConfigError, match=r"expected one that predicts quality, got \['cost'\]"):
        expected_by(constant, "cost", None, test, 1.0)


def test_without_other_queries_costs_are_estimated_out_of_fold(drawn):
    test = part(drawn.outcomes, "test")
    fair = estimated_cost(None, test)
    changed = test.values["cost"].copy()
    changed[0] *= 10
    moved = Outcomes(test.queries, test.pool, {**test.values, "cost": changed}, test.observed, test.labels)
    np.testing.assert_array_equal(estimated_cost(None, moved)[0], fair[0])  # its own cost is not in its estimate
    assert (np.abs(fair - test.values["cost"]).mean(axis=0) < 0.5 * test.values["cost"].mean(axis=0)).all()


def test_what_cannot_be_compared_is_said(drawn, compared):
    test, curves, counts, _ = compared
    with pytest.raises(UnknownNameError, match=r"'random mxi'.*Did you mean 'random mix'"):
        compare(curves, test, counts, against=("random mxi",))
    holey = drawn.outcomes.take(np.arange(20))
    holey.observed[3, 1] = False
    with pytest.raises(OutcomesError, match="got 20 queries of which 19 are complete"):
        resamples_of(holey, np.random.default_rng(0))
    with pytest.raises(OutcomesError, match="got 0 queries"):
        resamples_of(holey.take(np.arange(0)), np.random.default_rng(0))
