"""The survey's table: what can be used with the data one has."""

from __future__ import annotations

from importlib import import_module

import pytest

from polyroute.errors import ConfigError
from polyroute.recipes.taxonomy import NEEDS, STAGES, STRATEGIES, usable


def names(**wanted: object) -> set[str]:
    return {strategy.name for strategy in usable(**wanted)}  # type: ignore[arg-type]


def test_without_a_wish_everything_is_usable():
    assert usable() == list(STRATEGIES)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"needs": "nothing"}, {"profiles"}),
        ({"needs": "outcomes", "rows": 0}, {"profiles"}),
        ({"needs": "outcomes", "rows": 199}, {"profiles"}),
        ({"needs": "outcomes", "rows": 200}, {"profiles", "similarity", "budget", "cascade"}),
        ({"needs": "outcomes", "rows": 500, "stage": "before"}, {"profiles", "similarity", "supervised", "budget"}),
        ({"needs": "rewards"}, {"profiles", "bandit"}),
        ({"needs": "preferences", "rows": 200}, {"profiles"}),
        ({"stage": "after"}, {"cascade"}),
        ({"stage": "after", "needs": "rewards"}, set()),
    ],
)
def test_what_fits_is_named(wanted, expected):
    assert names(**wanted) == expected


@pytest.mark.parametrize("wanted", [{"stage": "during"}, {"needs": "labels"}])
def test_an_unknown_wish_says_what_there_is(wanted):
    with pytest.raises(ConfigError, match="expected one of"):
        usable(**wanted)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_every_part_exists(strategy):
    assert strategy.stage in STAGES
    assert strategy.needs in NEEDS
    for part in strategy.parts:
        module, _, name = part.partition(":")
        assert hasattr(import_module(f"polyroute.{module}"), name), part
