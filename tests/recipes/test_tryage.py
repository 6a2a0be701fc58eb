"""Tryage: flags out of prompts, and a sweep that ends at the smallest model."""

from __future__ import annotations

import numpy as np
import pytest

from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import ConfigError, UnknownCandidateError, UnknownNameError
from polyroute.recipes.tryage import objective, pareto, parse_flags, tryage
from polyroute.types import Candidate

REGISTRY = {"size": "size", "smallest model": "size", "recent": "age", "safe": "risk"}


@pytest.mark.parametrize(
    ("text", "clean", "weights"),
    [
        ("Tell me a joke", "Tell me a joke", {}),
        ("", "", {}),
        ("[size=0.3] Tell me a joke", "Tell me a joke", {"size": 0.3}),
        ("Tell me [size=0.3] a joke", "Tell me a joke", {"size": 0.3}),
        ("Tell me a joke [size=0.3]", "Tell me a joke", {"size": 0.3}),
        ("[smallest model]", "", {"size": 1.0}),
        ("[Smallest Model] [SAFE = 2] go", "go", {"size": 1.0, "risk": 2.0}),
        ("[size=0.25] [smallest model] [size=0] go", "go", {"size": 1.25}),
        ("[size=1e-2] go", "go", {"size": 0.01}),
        ("line one\n[recent]\nline two", "line one\nline two", {"age": 1.0}),
        # what is no flag stays as it is
        ("see [1] and [note]", "see [1] and [note]", {}),
        ("row[size=3] = 1", "row[size=3] = 1", {}),
        ("[size=3](https://example.org)", "[size=3](https://example.org)", {}),
        ("[[size=3]]", "[[size=3]]", {}),
        ("[] [=3] [size", "[] [=3] [size", {}),
    ],
)
def test_flags_are_taken_out_and_nothing_else(text, clean, weights):
    assert parse_flags(text, REGISTRY) == (clean, pytest.approx(weights))


@pytest.mark.parametrize("value", ["", "-1", "nan", "inf", "much"])
def test_a_weight_that_is_none_is_an_error(value):
    with pytest.raises(ConfigError, match="flag size: expected a weight of 0 or more"):
        parse_flags(f"[size={value}] go", REGISTRY)


def test_a_flag_with_a_value_that_nobody_knows_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="Did you mean 'size'"):
        parse_flags("[sizes=0.3] go", REGISTRY)


@pytest.fixture(scope="module")
def world():
    found = synthetic_outcomes(900, 4, rng=np.random.default_rng(3)).outcomes  # no model is best at every topic
    split = found.labels["split"]
    sizes = {candidate.id: 2.0**j for j, candidate in enumerate(found.pool)}
    return found.take(split == "train"), found.take(split == "test"), {"size": sizes}


def test_the_choice_is_the_argmin_of_loss_and_weighed_attributes(world):
    train, test, attributes = world
    router = tryage(attributes).fit(train)
    estimates = router.predict(test.queries, test.pool)
    scaled = (2.0 ** np.arange(4) - 1) / 7
    loss = 1 - estimates["quality"].mean + 0.4 * scaled
    utility = objective({"size": 0.4}).utility(estimates)
    assert (utility.argmax(axis=1) == loss.argmin(axis=1)).all()
    assert 1 - utility == pytest.approx(loss)


def test_the_sweep_falls_to_the_smallest_model(world):
    train, test, attributes = world
    points = pareto(tryage(attributes).fit(train), test, "size", (0.0, 0.1, 0.3, 1.0, 3.0, np.inf))
    size = [point["size"] for point in points]
    assert size == sorted(size, reverse=True)
    assert size[0] > 2.0
    assert size[-1] == 1.0
    assert points[0]["quality"] > points[-1]["quality"] + 0.1
    assert points[-1]["quality"] == pytest.approx(test.values["quality"][:, 0].mean())


def test_it_finds_a_best_model_more_often_than_the_best_single_one(world):
    train, test, attributes = world
    quality = test.values["quality"]
    utility = objective({}).utility(tryage(attributes).fit(train).predict(test.queries, test.pool))
    rows, single = np.arange(len(test)), train.values["quality"].mean(axis=0).argmax()
    assert quality[rows, utility.argmax(axis=1)].mean() > quality[:, single].mean() + 0.02


def test_a_model_without_a_size_is_named(world):
    train, test, attributes = world
    router = tryage(attributes).fit(train)
    with pytest.raises(UnknownCandidateError, match="'unknown'"):
        router.predict(test.queries, [Candidate("unknown")])
