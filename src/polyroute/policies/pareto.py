"""Choose among what nothing beats: the Pareto set of several metrics, then the nearest to having it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.policies.greedy import allowed_utility, best_only, take
from polyroute.types import Array, Estimates, Objective, Rng, Selection

BETTER_HIGH = frozenset({"quality"})  # of the other metrics less is better, where the objective does not say


@dataclass(frozen=True, slots=True)
class Pareto:
    """Of the allowed that no other beats in everything, the one nearest to the best of all and farthest from the worst.

    weights: metric -> importance, 0 or more; each metric is first brought to 0..1 over the candidates left, so units do
    not matter. All on quality gives the best, all on cost the cheapest. Whether more of a metric is better is the sign
    of its weight in the objective; a metric not weighed there: more quality is better, less of anything else.
    Closeness depends on who else is left, so it is no utility: it orders one query's candidates and nothing more.
    Source: TOPSIS, Hwang and Yoon 1981 (doi:10.1007/978-3-642-48318-9), after the Pareto filter as MoMA does it.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"quality": 0.5, "cost": 0.5})

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (weight >= 0 and np.isfinite(weight)):
                raise ConfigError(f"weights.{name}", got=weight, expected="an importance, 0 or more")
        if not self.weights or not any(self.weights.values()):
            raise ConfigError("weights", got=dict(self.weights), expected="a metric of importance above 0")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] without propensity. Weight is the expected utility. rng is not used."""
        utility = allowed_utility(estimates, objective, allowed)
        index = self.closeness(estimates, objective, allowed).argmax(axis=1)[:, None]
        return Selection(index, take(utility, index))

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice): 1 for the chosen."""
        return best_only(self.closeness(estimates, objective, allowed))

    def closeness(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] in 0..1, the larger the better; -inf where dominated or not allowed."""
        columns = []
        for name in self.weights:
            if name not in estimates:
                raise UnknownNameError("metric", name, estimates)
            sign = objective.weights.get(name, 0.0) or (1.0 if name in BETTER_HIGH else -1.0)
            columns.append(np.sign(sign) * estimates[name].mean)
        values = np.stack(columns, axis=2)
        kept = pareto_set(values, allowed)
        return topsis(values, np.array(list(self.weights.values())), kept)


def pareto_set(values: Array, allowed: Array) -> Array:
    """Who is beaten by nobody, [n, m] bool: no allowed other is as good in everything and better in something.

    values: [n, m, r], more is better. allowed: [n, m] bool. Equal candidates all stay.
    """
    if values.shape[:2] != allowed.shape:
        raise ShapeError("allowed", got=allowed.shape, expected=values.shape[:2])
    a, b = values[:, :, None, :], values[:, None, :, :]  # is a beaten by b?
    beaten = (b >= a).all(axis=3) & (b > a).any(axis=3) & allowed[:, None, :]
    return allowed & ~beaten.any(axis=2)


def topsis(values: Array, weights: Array, kept: Array) -> Array:
    """Closeness [n, m] in 0..1: distance to the worst over the sum of distances to worst and best; -inf where not kept.

    values: [n, m, r], more is better, brought to 0..1 over the kept; a metric in which they are all alike counts for
    nothing. weights: [r], 0 or more. With no metric that tells them apart everyone gets 1.
    """
    inside = kept[:, :, None]
    low = np.where(inside, values, np.inf).min(axis=1, keepdims=True)
    high = np.where(inside, values, -np.inf).max(axis=1, keepdims=True)
    room = np.where(high > low, high - low, 1.0)
    share = np.clip(np.where(inside, (values - low) / room, 0.0), 0.0, 1.0)
    weights = weights * (high > low)  # [n, 1, r]
    to_best = np.sqrt((weights**2 * (1.0 - share) ** 2).sum(axis=2))
    to_worst = np.sqrt((weights**2 * share**2).sum(axis=2))
    both = to_best + to_worst
    return np.where(kept, np.where(both > 0, to_worst / np.where(both > 0, both, 1.0), 1.0), -np.inf)
