"""When to hand a small model's work to a larger one: thresholds over difficulty, economics, and a fixed share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyroute.errors import ConfigError
from polyroute.types import Array, Rng


@dataclass(frozen=True, kw_only=True, slots=True)
class DifficultyThreshold:
    """The confidence an answer must reach: `low` for easy work, `high` for hard work, straight between the knots."""

    low: float = 0.80
    high: float = 0.92
    knots: tuple[float, float] = (0.3, 0.7)  # difficulty, 0..1

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError("low, high", got=(self.low, self.high), expected="0 <= low <= high <= 1")
        if not self.knots[0] < self.knots[1]:
            raise ConfigError("knots", got=self.knots, expected="two difficulties, the first one smaller")

    def __call__(self, difficulty: Array) -> Array:
        """The threshold at each difficulty, same shape."""
        threshold: Array = np.interp(difficulty, self.knots, (self.low, self.high))
        return threshold


def confidence_from_logprobs(logprobs: Sequence[float], floor: float) -> float:
    """(mean + |floor|) / |floor| within 0..1: 1 where every token was certain, 0 at a mean of `floor`.

    floor: a negative log probability, fixed once on calibration data. Raw confidence is not calibrated: pass it
    through an isotonic curve (routers/calibrate.curve) before it meets a threshold. No tokens: 0.
    """
    if not floor < 0:
        raise ConfigError("floor", got=floor, expected="a log probability below 0")
    if not len(logprobs):
        return 0.0
    return float(np.clip((float(np.mean(logprobs)) - floor) / -floor, 0.0, 1.0))


def expected_cost(share: float, small: float, large: float) -> float:
    """Mean cost when a share of requests is escalated: the probe is paid either way. Any unit."""
    return (1 - share) * small + share * (small + large)


def worth_escalating(p_small: Array, p_large: Array, value: float, large: Array) -> Array:
    """Whether a second call pays: (p_large - p_small) * value > its cost. value: of a right answer, unit of `large`."""
    pays: Array = (p_large - p_small) * value > large
    return pays


class UploadPolicy:
    """Escalate the most uncertain of a stream, at a given share of it, without knowing how uncertain it will get.

    A threshold follows the quantile: it rises with each escalation and falls otherwise, so that the share holds after
    any drift; right after one, more goes up. What went up beyond the share (or is missing from it) is taken off the aim
    of the next `settle`, so that the share of the whole stream holds and not only that of a calm one. `explore` of the
    share is drawn at random, since a learner that sees outliers only is biased to them. rate: of the threshold, in
    units of the mean distance of uncertainties from it.
    Source: online quantile tracking by stochastic gradient (Gibbs and Candes 2021, arXiv:2106.00170, for its use
    under drift); uncertainty-guided sampling after U-VPA.
    """

    def __init__(self, share: float = 0.1, rate: float = 0.5, explore: float = 0.2, settle: int = 100):
        for name, value in (("share", share), ("explore", explore)):
            if not 0 <= value <= 1:
                raise ConfigError(name, got=value, expected="a share in 0..1")
        if not rate > 0:
            raise ConfigError("rate", got=rate, expected="a step above 0")
        if settle < 1:
            raise ConfigError("settle", got=settle, expected="a number of decisions, 1 or more")
        self.share, self.rate, self.explore, self.settle = share, rate, explore, settle
        self.threshold: float | None = None
        self.spread = 0.0  # running mean distance from the threshold
        self.seen, self.sent = 0, 0

    def decide(self, uncertainty: float, rng: Rng) -> bool:
        """Whether to escalate this one. uncertainty: any unit, larger is less sure."""
        self.seen += 1
        if self.threshold is None:
            self.threshold = uncertainty
        aimed = self.share * (1 - self.explore)  # of all, by uncertainty; the rest of the share by luck
        high = uncertainty > self.threshold
        weight = max(1 / self.seen, 0.02)
        self.spread += weight * (abs(uncertainty - self.threshold) - self.spread)
        owed = (self.share * self.seen - self.sent) / self.settle
        self.threshold += self.rate * self.spread * (float(high) - min(max(aimed + owed, 0.0), 1.0))
        lucky = rng.random() < (self.share - aimed) / max(1 - aimed, 1e-9)
        self.sent += int(high or lucky)
        return bool(high or lucky)
