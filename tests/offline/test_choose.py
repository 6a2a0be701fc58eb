from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import OutcomesError, UnknownNameError
from polyroute.offline.choose import (
    FAMILIES,
    QUALITY_ROUTERS,
    Tried,
    best,
    families_of,
    quality_router,
    score,
    trials,
    try_settings,
)
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN


@pytest.fixture(scope="module")
def outcomes():
    return synthetic_outcomes(300, 3, rng=np.random.default_rng(0)).outcomes


def without_split(outcomes):
    return replace(outcomes, labels={name: column for name, column in outcomes.labels.items() if name != "split"})


def test_with_splits_valid_judges_and_test_is_never_seen(outcomes):
    (trial,) = trials(outcomes)
    assert set(trial.train.labels["split"]) == {"train"}
    assert set(trial.held_out.labels["split"]) == {"valid"}


def test_without_splits_folds_judge_and_groups_stay_together(outcomes):
    found = trials(without_split(outcomes), seed=3)
    assert len(found) == 5
    assert sum(len(trial.held_out) for trial in found) == 300
    assert all(not set(t.train.labels["group"]) & set(t.held_out.labels["group"]) for t in found)


def test_one_group_cannot_be_held_out(outcomes):
    alone = without_split(outcomes.take(np.arange(20)))
    alone.labels["group"][:] = "g"
    with pytest.raises(OutcomesError, match="at least 2 of 5 folds, to hold some out, got 20 queries in one fold"):
        trials(alone)


def test_the_truth_scores_more_than_its_reverse(outcomes):
    (trial,) = trials(outcomes)
    truth = trial.held_out.values["quality"]
    assert score(truth, trial) > score(KNN().fit(trial.train).predict(trial.held_out.queries, trial.held_out.pool)[
        "quality"].mean, trial) > score(1 - truth, trial)  # fmt: skip


def test_a_table_with_holes_is_judged_by_brier_score(outcomes):
    log = replace(outcomes, observed=np.eye(3, dtype=bool)[np.arange(300) % 3])
    (trial,) = trials(log)
    truth = trial.held_out.values["quality"]
    assert score(truth, trial) == 0
    assert score(np.full(truth.shape, 0.5), trial) == -0.25
    hidden = np.where(trial.held_out.observed, truth, 1 - truth)
    assert score(hidden, trial) == 0  # what was not observed has no say


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_of_a_family_is_tried(outcomes, family):
    if family == "irt":
        pytest.importorskip("scipy")
    (trial,) = trials(outcomes)
    tried = list(try_settings(family, [trial]))
    assert [one.settings for one in tried] == list(FAMILIES[family].settings)
    for one in tried[:: max(1, len(tried) // 3)]:
        router = quality_router(family, {family: dict(one.settings)}).fit(trial.train)
        expected = router.predict(trial.held_out.queries, trial.held_out.pool)["quality"].mean
        assert one.score == pytest.approx(score(expected, trial))


def test_the_highest_score_wins_and_the_first_among_equals():
    assert best([Tried({"k": 1}, 0.5), Tried({"k": 2}, 0.7), Tried({"k": 3}, 0.7)]).settings == {"k": 2}


@pytest.mark.parametrize("name", QUALITY_ROUTERS)
def test_every_name_builds_a_router_of_quality(outcomes, name):
    chosen = {family: dict(FAMILIES[family].settings[0]) for family in families_of(name)}
    router = quality_router(name, chosen).fit(outcomes)
    mean = router.predict(outcomes.queries[:5], outcomes.pool)["quality"].mean
    assert mean.shape == (5, 3)
    assert ((mean >= 0) & (mean <= 1)).all()


def test_a_prior_serves_a_model_without_outcomes(outcomes):
    router = quality_router("mix", {}, prior=Constant("quality", 0.25, 0.1)).fit(outcomes.among(["model-0"]))
    mean = router.predict(outcomes.queries[:4], outcomes.pool)["quality"].mean
    np.testing.assert_allclose(mean[:, 1:], 0.25)
    assert (np.abs(mean[:, 0] - 0.25) > 0.01).all()


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="Did you mean 'knn'"):
        families_of("knnn")
    with pytest.raises(UnknownNameError, match="'price'"):
        quality_router("price", {})
