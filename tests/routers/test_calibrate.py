from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.errors import ConfigError
from polyroute.routers.calibrate import Calibrated, curve, isotonic
from polyroute.routers.knn import KNN
from polyroute.types import Candidate, Estimate
from tests.routers.tables import queries_of, renamed, table_of, toy


class Memoriser:
    """Says 1 for every query it was fitted on and 0.25 for others: any leak of its own rows shows."""

    metric = "quality"

    def fit(self, outcomes):
        self.known = {query.id for query in outcomes.queries}
        return self

    def predict(self, queries, pool):
        mean = [[1.0 if query.id in self.known else 0.25] * len(pool) for query in queries]
        return {"quality": Estimate(np.array(mean, dtype=float).reshape(len(queries), len(pool)))}


class Distorted:
    """Says the square of the first coordinate, where the chance is the coordinate itself."""

    def fit(self, outcomes):
        return self

    def predict(self, queries, pool):
        mean = np.array([[q.embedding[0] ** 2] * len(pool) for q in queries]).reshape(len(queries), len(pool))
        return {"quality": Estimate(mean, np.full(mean.shape, 0.1))}


def distorted_table(n=4000, m=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 2))
    return table_of(x, (rng.random((n, m)) < x[:, :1]).astype(float))


@pytest.mark.parametrize("seed", range(20))
def test_isotonic_is_the_max_min_of_means(seed):
    rng = np.random.default_rng(seed)
    x, y, w = np.arange(15.0), rng.normal(size=15) + 0.1 * np.arange(15), rng.random(15) + 0.1
    knots = isotonic(x, y, w)
    mean = [[np.average(y[a : b + 1], weights=w[a : b + 1]) if a <= b else 0.0 for b in range(15)] for a in range(15)]
    expected = [max(min(mean[a][b] for b in range(i, 15)) for a in range(i + 1)) for i in range(15)]
    level = np.repeat(knots[1], np.searchsorted(np.cumsum(w), np.cumsum(knots[2]) - 1e-9) + 1 - np.append(
        0, np.searchsorted(np.cumsum(w), np.cumsum(knots[2])[:-1] - 1e-9) + 1))  # fmt: skip
    np.testing.assert_allclose(level, expected, atol=1e-12)
    assert (np.diff(knots[1]) > 0).all()
    assert knots[2].sum() == pytest.approx(w.sum())
    assert (knots[1] * knots[2]).sum() == pytest.approx((y * w).sum())


def test_equal_predictions_share_one_block():
    knots = isotonic(np.array([1.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]), np.ones(3))
    np.testing.assert_allclose(knots, [[1.0, 2.0], [0.5, 2.0], [2.0, 1.0]])


def test_a_curve_has_bins_of_twenty_or_more():
    rng = np.random.default_rng(0)
    for n in (1, 19, 45, 1000, 9000):
        said = rng.random(n)
        knots = curve(said, said)
        assert knots[2].sum() == n
        assert knots[2].min() >= min(n, 20)
        assert knots.shape[1] <= 200


def test_it_learns_what_predictions_mean_and_keeps_their_order():
    router = Calibrated(Distorted()).fit(distorted_table())
    x = np.linspace(0.1, 0.9, 30)
    mean, std = router.predict(queries_of(np.stack([x, x], axis=1)), [Candidate("m0")])["quality"]
    np.testing.assert_allclose(mean[:, 0], x, atol=0.06)
    assert (np.diff(mean[:, 0]) > 0).all()
    np.testing.assert_allclose(std, 0.1)


def test_no_curve_sees_a_prediction_of_a_row_learned_from():
    table = toy(60, missing=0.0)
    router = Calibrated(Memoriser()).fit(table)
    said = router.curves_["quality"]["*"]
    assert said[0].tolist() == [0.25]
    assert said[1] == pytest.approx(table.values["quality"].mean())
    # fitted on everything in the end
    assert router.router.known == {query.id for query in table.queries}


def test_groups_are_held_out_whole():
    held = []

    class Watched(Memoriser):
        def fit(self, outcomes):
            held.append(set(outcomes.labels["group"].tolist()))
            return super().fit(outcomes)

        def predict(self, queries, pool):
            held[-1] = (held[-1], {query.id for query in queries})
            return super().predict(queries, pool)

    table = toy(60)
    group = dict(zip((q.id for q in table.queries), table.labels["group"].tolist(), strict=True))
    Calibrated(Watched(), folds=4).fit(table)
    folds = held[:4]
    assert all(not {group[name] for name in asked} & learned for learned, asked in folds)
    assert sorted(name for _, asked in folds for name in asked) == sorted(group)


def test_by_candidate_each_gets_its_own_curve_drawn_to_the_common_one():
    table = distorted_table()
    table.values["quality"][:, 1] = 0.0
    x = queries_of(np.array([[0.8, 0.0]]))
    own = Calibrated(Distorted(), by="candidate", kappa=0.0).fit(table).predict(x, table.pool)["quality"].mean
    common = Calibrated(Distorted()).fit(table).predict(x, table.pool)["quality"].mean
    half = Calibrated(Distorted(), by="candidate", kappa=4000.0).fit(table).predict(x, table.pool)["quality"].mean
    assert own[0, 0] == pytest.approx(0.8, abs=0.06)
    assert own[0, 1] == 0.0
    assert common[0, 0] == common[0, 1] == pytest.approx(0.4, abs=0.06)
    np.testing.assert_allclose(half, (own + common) / 2)


def test_a_candidate_missing_from_a_fold_is_left_out_of_it_only():
    table = toy(60, missing=0.0)
    table.observed[1:, 3] = False
    table.values["quality"][1:, 3] = np.nan
    router = Calibrated(KNN(5)).fit(table)
    assert router.curves_["quality"]["*"][2].sum() == 60 * 3
    assert np.isfinite(router.predict(table.queries, table.pool)["quality"].mean).all()


def test_one_group_leaves_means_as_they_are():
    table = replace(toy(20), labels={"group": np.array(["same"] * 20)})
    plain, test = KNN(5).fit(table), toy(5, seed=1)
    found = Calibrated(KNN(5)).fit(table).predict(test.queries, test.pool)["quality"].mean
    np.testing.assert_array_equal(found, plain.predict(test.queries, test.pool)["quality"].mean)


def test_a_candidate_without_a_curve_of_its_own_gets_the_common_one():
    table = toy(60)
    router = Calibrated(KNN(5), by="candidate").fit(table)
    router.update(renamed(toy(30, seed=2), ["a", "b", "c", "d"]))
    mean = router.predict(toy(5, seed=1).queries, [Candidate("a")])["quality"].mean
    low, high = router.curves_["quality"]["*"][1][[0, -1]]
    assert ((mean >= low) & (mean <= high)).all()


@pytest.mark.parametrize(("option", "value"), [("kind", "platt"), ("by", "colour"), ("folds", 1), ("kappa", -1.0)])
def test_options_out_of_range_name_themselves(option, value):
    with pytest.raises(ConfigError, match=option):
        Calibrated(KNN(), **{option: value})
