"""RouteProfile: consumers by name, flat profiles from described texts, and task-level tables."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import UnknownNameError
from polyroute.recipes.route_profile import by_task, embedded, route_profile


class Letters:
    """A featuriser for tests: how often each of the first letters occurs."""

    name, dim = "letters-1", 16

    def __call__(self, texts):
        return np.array([[text.count(chr(97 + k)) for k in range(16)] for text in texts], dtype=np.float32)


def test_structured_profiles_beat_descriptions_that_say_nothing():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes
    train, test = found.take(found.labels["split"] == "train"), found.take(found.labels["split"] == "test")
    quality = test.values["quality"]
    texts = {c.id: f"model number {j}" for j, c in enumerate(train.pool)}
    score = {}
    for kind in ("flat", "graph"):
        router = route_profile(kind=kind, texts=texts, featuriser=Letters()).fit(train)
        mean = router.predict(test.queries, test.pool)["quality"].mean
        score[kind] = quality[np.arange(len(test)), mean.argmax(axis=1)].mean()
    assert score["graph"] > score["flat"] + 0.02
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        route_profile("cosin")


def test_texts_are_embedded_by_name():
    found = embedded({"a": "aab", "b": "b"}, Letters())
    assert found["a"][:2].tolist() == [2, 1]
    assert found["b"][:2].tolist() == [0, 1]


def test_task_level_scores_are_the_means_of_tasks():
    table = synthetic_outcomes(200, 3, rng=np.random.default_rng(0)).outcomes
    means = by_task(table)
    for task in np.unique(table.labels["dataset"]):
        rows = table.labels["dataset"] == task
        expected = np.tile(table.values["quality"][rows].mean(axis=0), (rows.sum(), 1))
        np.testing.assert_allclose(means.values["quality"][rows], expected)
    assert means.values["cost"] is table.values["cost"]
