"""Sometimes take another than the best, to learn what it yields, and say how likely that was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError
from polyroute.policies.greedy import allowed_utility, best_only, refuse, take
from polyroute.types import Array, Estimates, Objective, Rng, Selection

REACH = 6.0  # standard deviations from the mean beyond which a normal is taken as 0 (2e-9 of its mass)
KNOTS = np.array([-REACH, -3.0, -1.0, 1.0, 3.0, REACH])  # where its integral is split, standard deviations
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(5)
LARGE = 16  # candidates from which on one common grid may take fewer pieces than everyone's own knots
FINE = 0.5  # width of its pieces, in stds of the narrowest candidate there


@dataclass(frozen=True, slots=True)
class Epsilon:
    """The best, except that with probability epsilon one of the allowed is drawn, each as likely."""

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.epsilon <= 1.0:
            raise ConfigError("epsilon", got=self.epsilon, expected="a probability, 0 to 1")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1]; the best is chosen with 1 - epsilon + epsilon / number allowed, another with the rest."""
        utility = allowed_utility(estimates, objective, allowed)
        return drawn(self._odds(utility, allowed), utility, rng)

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice)."""
        return self._odds(allowed_utility(estimates, objective, allowed), allowed)

    def _odds(self, utility: Array, allowed: Array) -> Array:
        return (1.0 - self.epsilon) * best_only(utility) + allowed * (self.epsilon / allowed.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Softmax:
    """Draw in proportion to exp(utility / temperature): the worse, the rarer, but never never."""

    temperature: float  # in the unit of utility: a candidate worse by this much is chosen 1/e times as often

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError("temperature", got=self.temperature, expected="a number above 0, in units of utility")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] with propensity."""
        utility = allowed_utility(estimates, objective, allowed)
        return drawn(self._odds(utility), utility, rng)

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice)."""
        return self._odds(allowed_utility(estimates, objective, allowed))

    def _odds(self, utility: Array) -> Array:
        odds = np.exp((utility - utility.max(axis=1, keepdims=True)) / self.temperature)
        return odds / odds.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class UCB:
    """Optimism: the best by mean + z * std of its utility. What is little known gets the benefit of the doubt.

    Deterministic. A metric whose std is None counts as known exactly.
    Source: Auer 2002 for the idea; with `routers/linear.py` it is LinUCB (arXiv:1003.0146).
    """

    z: float = 1.0  # standard deviations of benefit; below 0 it is caution

    def __post_init__(self) -> None:
        if not np.isfinite(self.z):
            raise ConfigError("z", got=self.z, expected="a finite number of standard deviations")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] without propensity. Weight is the expected utility, without the benefit of the doubt."""
        utility, std = utility_and_std(estimates, objective, allowed)
        index = (utility + self.z * std).argmax(axis=1)[:, None]
        return Selection(index, take(utility, index))

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice): 1 for the chosen."""
        utility, std = utility_and_std(estimates, objective, allowed)
        return best_only(utility + self.z * std)


@dataclass(frozen=True, slots=True)
class Thompson:
    """Choose each candidate as often as it is likely to be the best.

    Utilities are taken as independent normals with the estimated mean and std (None: known exactly). The
    probability of being best is integrated numerically and the choice is drawn from just those numbers, so the
    logged propensity is that of the draw and not an estimate of it. Drawing one utility each and taking the
    largest chooses alike, but then the propensity is not known.
    Source: Thompson 1933 (doi:10.1093/biomet/25.3-4.285); Russo et al. 2017 (arXiv:1707.02038).
    """

    scale: float = 1.0  # multiplies every std: above 1 explores more

    def __post_init__(self) -> None:
        if not 0 <= self.scale < np.inf:
            raise ConfigError("scale", got=self.scale, expected="a factor on the std, 0 or more")

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, 1] with propensity. Weight is the expected utility."""
        utility, std = utility_and_std(estimates, objective, allowed)
        return drawn(chance_of_best(utility, self.scale * std), utility, rng)

    def probabilities(self, estimates: Estimates, objective: Objective, allowed: Array) -> Array:
        """[n, m] P(choice)."""
        utility, std = utility_and_std(estimates, objective, allowed)
        return chance_of_best(utility, self.scale * std)


def drawn(probability: Array, utility: Array, rng: Rng) -> Selection:
    """One candidate a row, drawn from probability [n, m]; its expected utility and its propensity.

    Draws what `kernels.sample.sample` draws, in plain numpy: on one small row the shim costs ten times the work.
    """
    reached = probability.cumsum(axis=1)
    total = reached[:, -1:]
    mark = rng.random((len(probability), 1)) * total  # below total, also when rounded: nobody without odds is drawn
    index = (reached <= mark).sum(axis=1)[:, None]
    return Selection(index, take(utility, index), take(probability, index) / total)


def utility_and_std(estimates: Estimates, objective: Objective, allowed: Array) -> tuple[Array, Array]:
    """Mean and std of utility, each [n, m]: -inf and 0 where not allowed.

    The errors of different metrics are taken as independent; a std of None as 0.
    Raises: EstimateError naming the metric if an allowed mean or std is not a number.
    """
    utility = allowed_utility(estimates, objective, allowed)
    variance = np.zeros(utility.shape)
    for name, weight in objective.weights.items():
        if (std := estimates[name].std) is not None:
            variance += np.where(allowed, weight * std, 0.0) ** 2
    if not np.isfinite(variance.max(initial=0.0)):  # no rows: nothing to refuse
        refuse(estimates, objective, allowed)
    return utility, np.sqrt(variance)


def chance_of_best(mean: Array, std: Array) -> Array:
    """P(largest) [n, m] of independent normals, ties of exactly known ones to the first.

    mean: [n, m], -inf for one that takes no part. std: [n, m] >= 0. Rows sum to 1.
    P(j) is the integral of density j times all other distribution functions, by Gauss-Legendre pieces between the
    knots of all normals: as exact for stds of different magnitude. Absolute error below 1e-6. Time grows as m^2, but
    little more than m in a large pool of like stds, where one grid serves everyone.
    """
    m = mean.shape[1]
    rows = max(1, 200_000 // (m**2 * (len(KNOTS) * len(NODES) if m < LARGE else 8)))  # a few MB at a time
    parts = [_chance_of_best(mean[i : i + rows], std[i : i + rows]) for i in range(0, len(mean), rows)]
    return np.concatenate(parts) if parts else np.zeros(mean.shape)


def _chance_of_best(mean: Array, std: Array) -> Array:
    known = std == 0
    floor = np.where(known, mean, -np.inf).max(axis=1, keepdims=True)  # [n, 1] best of the exactly known
    low = np.where(known, mean, mean - REACH * std).max(axis=1, keepdims=True)  # nobody wins with less
    width = np.where(known, 1.0, std)
    centre = np.where(known, low, mean)
    knots = common_grid(centre, np.where(known, 0.0, std), low) if mean.shape[1] >= LARGE else None
    if knots is None:
        knots = np.maximum(centre[:, :, None] + np.where(known, 0.0, std)[:, :, None] * KNOTS, low[:, :, None])
        knots = np.sort(knots.reshape(len(mean), -1), axis=1)
    width_of_piece = np.diff(knots)
    some = width_of_piece.any(axis=0)
    half = width_of_piece[:, some, None] / 2  # [n, pieces, 1]
    x = (knots[:, :-1][:, some, None] + half + half * NODES).reshape(len(mean), -1)  # [n, points]
    area = (half * NODE_WEIGHTS).reshape(len(mean), -1)
    below, density = normal((x[:, :, None] - centre[:, None, :]) / width[:, None, :])  # [n, points, m]
    below = np.where(known[:, None, :], 1.0, below)
    before, after = np.ones_like(below), np.ones_like(below)
    np.cumprod(below[:, :, :-1], axis=2, out=before[:, :, 1:])
    after[:, :, :-1] = np.cumprod(below[:, :, :0:-1], axis=2)[:, :, ::-1]
    chance = np.einsum("np,npm->nm", area, density * before * after) / width
    chance = np.where(known, 0.0, chance)
    rest, _ = normal((floor - centre) / width)  # nobody in doubt beats the best of the known
    sure = np.where(known, 1.0, rest).prod(axis=1, keepdims=True)
    first = best_only(np.where(known, mean, -np.inf))
    chance = chance + np.where(floor > -np.inf, first * sure, 0.0)
    return chance / chance.sum(axis=1, keepdims=True)


def common_grid(centre: Array, std: Array, low: Array) -> Array | None:
    """Ends of pieces [n, k] that suit all normals at once, or None where everyone's own knots are fewer.

    A piece is `FINE` stds wide of the narrowest normal within whose reach it lies; stretches nobody reaches take none.
    centre: [n, m]. std: [n, m], 0 for one that is known. low: [n, 1], where the integral starts.
    """
    ends = np.concatenate([centre - REACH * std, centre + REACH * std], axis=1)
    ends = np.sort(np.maximum(ends, low), axis=1)  # [n, 2m]
    middle = (ends[:, :-1] + ends[:, 1:])[:, :, None] / 2
    near = np.abs(middle - centre[:, None, :]) < REACH * std[:, None, :]
    narrowest = np.where(near, std[:, None, :], np.inf).min(axis=2)  # [n, 2m - 1]
    pieces = np.cumsum(np.diff(ends, axis=1) / (FINE * narrowest), axis=1)
    pieces = np.concatenate([np.zeros((len(ends), 1)), pieces], axis=1)
    most = int(np.ceil(pieces[:, -1].max()))
    if most >= len(KNOTS) * centre.shape[1]:
        return None
    share = np.linspace(0.0, 1.0, most + 1)
    return np.stack([np.interp(share * row[-1], row, x) for row, x in zip(pieces, ends, strict=True)])


def normal(t: Array) -> tuple[Array, Array]:
    """Distribution function and density of the standard normal, any shape; absolute error below 1e-7.

    Source: Abramowitz and Stegun 1964, formula 26.2.17.
    """
    size = np.abs(t)
    density = np.exp(-0.5 * size * size) / np.sqrt(2 * np.pi)
    k = 1.0 / (1.0 + 0.2316419 * size)
    tail = density * k * (0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (-1.821255978 + k * 1.330274429))))
    return np.where(t > 0, 1.0 - tail, tail), density
