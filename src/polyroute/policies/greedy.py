"""Take the best. Also what every policy needs: utilities of the allowed candidates, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError, EstimateError, NoCandidateError, ShapeError
from polyroute.types import Array, Estimates, Objective, Rng, Selection

SMALL = 16  # candidates up to which one row is looked through sooner as plain numbers than as an array


@dataclass(frozen=True, slots=True)
class Greedy:
    """The k allowed candidates of highest expected utility, best first.

    Ties go to the first column. Weights are expected utilities; a row with fewer than k allowed ends in index -1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        if not self.k >= 1 or self.k % 1:
            raise ConfigError("k", got=self.k, expected="1 or more" if self.k < 1 else "a whole number")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, min(k, m)] without propensity: nothing is left to chance. rng is not used."""
        if self.k == 1 and len(allowed) == 1 and allowed.size <= SMALL:
            row, may = objective.utility(estimates).tolist(), allowed.tolist()
            if len(row) == 1 and len(row[0]) == len(may[0]) and (best := first_best(row[0], may[0])) is not None:
                return Selection(np.array([[best]]), np.array([[row[0][best]]]))
        utility = allowed_utility(estimates, objective, allowed)
        if self.k == 1:
            index = utility.argmax(axis=1, keepdims=True)
            return Selection(index, take(utility, index))
        index = np.argsort(-utility, axis=1, kind="stable")[:, : self.k]
        weight = take(utility, index)
        found = weight > -np.inf
        return Selection(np.where(found, index, -1), np.where(found, weight, 0.0))

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(first choice): 1 for the best, 0 elsewhere."""
        return best_only(allowed_utility(estimates, objective, allowed))


def first_best(utility: list[float], may: list[bool]) -> int | None:
    """The first of the best allowed; None where there is none, or where one of them is infinite or no number."""
    best, at = -math.inf, None
    for j, value in enumerate(utility):
        if may[j] and not value <= best:
            if not value < math.inf:
                return None
            best, at = value, j
    return at


def allowed_utility(estimates: Estimates, objective: Objective, allowed: Array) -> Array:
    """Expected utility [n, m], -inf where not allowed.

    Raises: EstimateError if the estimate of an allowed candidate is NaN, or so large that nothing can be compared;
    NoCandidateError if a row allows nobody; ShapeError if estimates and allowed do not fit.
    """
    utility = objective.utility(estimates)
    if utility.shape != allowed.shape:
        raise ShapeError("allowed", got=allowed.shape, expected=utility.shape)
    if not allowed.shape[1]:
        raise NoCandidateError("row 0", {})
    masked = np.where(allowed, utility, -np.inf)
    best = take(masked, masked.argmax(axis=1, keepdims=True))  # NaN if any is
    if not all(map(math.isfinite, best.ravel().tolist())):
        refuse(estimates, objective, allowed)
    return masked


def refuse(estimates: Estimates, objective: Objective, allowed: Array) -> None:
    """Say which estimate keeps a row from being weighed. Raises: NoCandidateError or EstimateError, always."""
    for i in np.flatnonzero(~allowed.any(axis=1)):
        raise NoCandidateError(f"row {i}", {f"column {j}": "`allowed`" for j in range(allowed.shape[1])})
    parts = {name: estimates[name].mean for name in objective.weights}
    stds = {f"{name}.std": estimates[name].std for name in objective.weights}
    for name, values in {**parts, **stds, "utility": objective.utility(estimates)}.items():
        if values is not None:
            for i, j in np.argwhere(allowed & ~np.isfinite(values)):
                raise EstimateError(name, row=int(i), column=int(j), got=float(values[i, j]))
    raise EstimateError("utility", row=0, column=0, got=float("nan"))


def best_only(scores: Array) -> Array:
    """[n, m] float: 1 at the first largest of each row of scores [n, m], 0 elsewhere."""
    chosen = np.zeros(scores.shape)
    chosen[np.arange(len(scores)), scores.argmax(axis=1)] = 1.0
    return chosen


def take(values: Array, index: Array) -> Array:
    """values[i, index[i, r]] as [n, k]. values: [n, m]. index: [n, k] int."""
    if len(values) == 1:  # one decision: a seventh of the time
        return values.take(index)
    return values[np.arange(len(values))[:, None], index]
