from __future__ import annotations

import numpy as np
import pytest

from polyroute.artefact import pack, unpack
from polyroute.offline.newcomer import ASK, Joining, ask_across, joined, measures, share_of_gain
from polyroute.offline.split import group_folds, groups_of
from polyroute.routers.default import Default
from tests.routers.tables import toy


def made(without, full, few, b=40):
    """A joining whose resamples scatter by a thousandth, both measures alike."""
    noise = 1e-3 * np.random.default_rng(0).normal(size=(1 + b, 2))
    noise[0] = 0.0
    return Joining("m", without + noise, full + noise, np.array(few)[:, None, None] + noise)


def test_the_share_is_a_ratio_of_sums_over_models_that_gain():
    joinings = [made(0.5, 0.6, [0.56, 0.54]), made(0.5, 0.52, [0.5, 0.5]), made(0.5, 0.5, [0.4, 0.4])]
    share = share_of_gain(joinings, 0, np.random.default_rng(1))
    assert len(share.models) == 2
    assert share.value == pytest.approx(0.05 / 0.12)
    assert share.interval.low < 0.05 / 0.12 < share.interval.high
    assert share.interval.low == pytest.approx(0.04 / 0.12, abs=1e-6)  # the worse draw twice


def test_without_a_clear_gain_there_is_no_share():
    share = share_of_gain([made(0.5, 0.5, [0.5, 0.6])], 1, np.random.default_rng(0))
    assert share.models == ()
    assert np.isnan(share.value)


def test_asking_across_gives_each_task_its_share_and_each_difficulty():
    table = toy(400, missing=0.0)
    rows = ask_across(table, "m3", 40, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 40
    law = table.labels["dataset"] == "law"
    assert abs(law[rows].mean() - law.mean()) < 0.03
    hard = table.values["quality"][:, :3].mean(axis=1)
    for task in (law, ~law):
        asked = rows[task[rows]]
        assert abs(hard[asked].mean() - hard[task].mean()) < 0.05


def test_asking_never_reads_the_newcomers_own_answers():
    table = toy(200, missing=0.0)
    before = ask_across(table, "m1", 20, np.random.default_rng(0))
    table.values["quality"][:, 1] = 1 - table.values["quality"][:, 1]
    np.testing.assert_array_equal(before, ask_across(table, "m1", 20, np.random.default_rng(0)))


def test_measures_are_those_of_the_choices():
    table = toy(50, missing=0.0)
    always = np.full((62, 50), 2)
    found = measures([always[:, :20], always[:, 20:]], table, np.ones((1, 50)))
    assert found.shape == (1, 2)
    assert found[0, 1] == pytest.approx(table.values["quality"][:, 2].mean())


def test_a_model_returns_between_nothing_and_all():
    table = toy(400, missing=0.0)
    table.values["quality"][:, 3] = np.random.default_rng(1).random(400) < 0.95  # the only one good at everything
    fold = group_folds(groups_of(table), 2, 0)
    pairs = [(table.take(fold == 0), table.take(fold == 1))]  # one pair: two routers are fitted
    (found,) = joined(lambda learned: Default().fit(learned), lambda router: unpack(*pack(router)), pairs,
                      answers=30, draws=2, resamples=10, models=["m3"])  # fmt: skip
    assert set(found) == set(ASK)
    for one in found.values():
        assert one.few.shape == (2, 11, 2)
        assert one.clear == [True, True]
        share = share_of_gain([one], 1, np.random.default_rng(0))
        assert 0.6 < share.value < 1.1
