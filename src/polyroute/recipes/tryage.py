"""System 16, Tryage (arXiv:2308.11601): predict each model's loss on the prompt, weigh it against static attributes.

A shared head a model predicts quality (loss is 1 - quality); attributes join the utility with weights the user may
write into the prompt as flags. Parts: routers/linear, routers/attributes, policies/greedy, offline/frontier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.routers.attributes import Attributes
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Together
from polyroute.types import Array, Objective, Outcomes

FLAG = re.compile(r"(?<!\S)\[(?P<name>[a-z][a-z_ -]*?)(?:\s*=\s*(?P<value>[^\]\s]*))?\](?!\S)\s?", re.IGNORECASE)


def tryage(attributes: Mapping[str, Mapping[str, float]], **linear: Any) -> Together:
    """The router: expected quality from the text, attributes from the table, each in 0..1."""
    return Together([Linear("quality", **linear), Attributes(attributes)])


def parse_flags(text: str, registry: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Take flags such as `[size=0.3]` or `[smallest model]` out of a prompt.

    registry: flag name -> attribute. A flag without a value weighs 1. Returns the text to forward and the weights.
    A name in brackets that is no flag stays in the text, unless it has a value: then it is a UnknownNameError.
    """
    weights: dict[str, float] = {}

    def take(found: re.Match[str]) -> str:
        name, value = found["name"].lower(), found["value"]
        if name not in registry:
            if value is not None:
                raise UnknownNameError("flag", name, registry)
            return found.group()
        try:
            weight = 1.0 if value is None else float(value)
        except ValueError:
            weight = float("nan")
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"flag {name}", got=value, expected="a weight of 0 or more")
        weights[registry[name]] = weights.get(registry[name], 0.0) + weight
        return ""

    return FLAG.sub(take, text).rstrip(), weights


def objective(weights: Mapping[str, float]) -> Objective:
    """Quality less each attribute's weight: argmin of loss + sum of weight x attribute."""
    return Objective({"quality": 1.0, **{name: -weight for name, weight in weights.items()}})


def pareto(router: Together, outcomes: Outcomes, attribute: str, weights: Sequence[float]) -> list[dict[str, float]]:
    """Mean quality and mean attribute (as given, unscaled) of the choices at each weight."""
    estimates = router.predict(outcomes.queries, outcomes.pool)
    table = next(r for r in router.routers if isinstance(r, Attributes)).values[attribute]
    value = np.array([table[c.id] for c in outcomes.pool])
    every: Array = np.arange(len(outcomes))
    points = []
    for weight in weights:
        endless = np.isinf(weight)  # then the attribute alone decides
        utility = -estimates[attribute].mean if endless else objective({attribute: weight}).utility(estimates)
        choice = utility.argmax(axis=1)
        quality = outcomes.values["quality"][every, choice].mean()
        points.append({"weight": weight, "quality": float(quality), attribute: float(value[choice].mean())})
    return points
