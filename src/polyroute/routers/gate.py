"""Fast or deep: P(the deep tier wins) from the query, learned offline or from what users do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.routers.heads import Features, features, logistic_posterior, sigmoid
from polyroute.routers.rows import check_shape, embeddings, unit_rows
from polyroute.types import Array, Query, Rng

TIERS = ("fast", "deep")
WEIGHT = {"correctness": 1.0, "preference": 0.5, "switch": 0.3}  # of an event in an update
CAP = 50.0  # largest weight of one event


class Turn(NamedTuple):
    """One decision of the gate, as it has to be remembered until its feedback comes."""

    tier: str  # fast or deep
    propensity: float  # P(this tier) when it was chosen
    chance: float  # P(the deep tier wins)
    phi: Array  # [p]


class ThinkGate:
    """Chooses between two tiers, with a band so that a conversation does not flutter, and learns from feedback.

    Deep is entered above tau + band and left below tau - band. With probability `explore` either tier is drawn alike,
    and the propensity says so. Feedback moves a logistic head by steps of rate / sqrt(t): correctness (the gain of
    deep over fast, where both were judged) weighs 1, a preference 0.5, a switch 0.3. The mean of the weights over the
    steps is what serves, late ones counting more.

    A switch is told by the dissatisfied only. With `ipw` a turn served fast is evidence whether or not its user
    switched: its label is switched / report_rate, weighed by 1 / P(fast), which on average is P(deep wins), whoever was
    served how often. Without it each switch is a label of its own, and the gate learns that everybody is dissatisfied.
    report_rate: the share of users better served by deep who do switch, from `report_rate_of` audited turns. A switch
    that a quota caused is no feedback: leave it out.
    Source: the GPT-5 system card names the signals; all else is inferred.
    """

    def __init__(
        self, tau: float = 0.5, band: float = 0.05, explore: float = 0.01, *, rank: int = 32, rate: float = 12.0,
        ipw: bool = True, report_rate: float = 0.3, l2: float = 10.0,
    ):  # fmt: skip
        for name, value in (("tau", tau), ("band", band), ("explore", explore), ("report_rate", report_rate)):
            if not 0 <= value <= 1:
                raise ConfigError(name, got=value, expected="a share, 0 to 1")
        if report_rate == 0 or not rate > 0 or not l2 > 0:
            raise ConfigError("report_rate, rate, l2", got=(report_rate, rate, l2), expected="numbers above 0")
        self.tau, self.band, self.explore, self.rank, self.rate = tau, band, explore, rank, rate
        self.ipw, self.report_rate, self.l2 = ipw, report_rate, l2
        self.features_: Features | None = None

    def start(self, queries: Sequence[Query], chance: float = 0.5) -> Self:
        """Features of these queries, and one chance for all until feedback comes."""
        x = unit_rows(embeddings(queries))
        if not len(x):
            raise OutcomesError("expected queries to take features from, got none.")
        rank = self.rank if len(x) >= 2 * self.rank else None
        self.features_ = features(x, rank, None)
        phi = self.features_(x, None).astype(float)
        self.scale_ = np.maximum(phi.std(axis=0), 1e-6)
        self.scale_[0] = 1.0
        self.weight_, self.steps_ = np.zeros(phi.shape[1]), 0
        self.weight_[0] = np.log(chance / (1 - chance))
        self.last_ = self.weight_.copy()
        return self

    def fit(self, queries: Sequence[Query], gain: Array) -> Self:
        """Learn from judged pairs. gain: [n] quality of deep less that of fast; deep wins where it is above 0."""
        gain = np.asarray(gain, dtype=float)
        if gain.shape != (len(queries),):
            raise ShapeError("gain", got=gain.shape, expected=(len(queries),))
        if not np.isfinite(gain).all():
            raise OutcomesError("gain: expected a finite number for every query, got others.")
        self.start(queries)
        phi = self.phi(queries)
        penalty = np.append(1e-3, np.full(phi.shape[1] - 1, self.l2))
        self.weight_, _ = logistic_posterior(phi, (gain > 0).astype(float), np.zeros(len(phi)), penalty)
        self.last_ = self.weight_.copy()
        return self

    def phi(self, queries: Sequence[Query]) -> Array:
        """Features [n, p], each of about unit size."""
        if self.features_ is None:
            raise NotFittedError(self)
        x = unit_rows(embeddings(queries, len(self.features_.directions)))
        return self.features_(x, None).astype(float) / self.scale_

    def chance(self, queries: Sequence[Query]) -> Array:
        """P(deep wins) [n]."""
        return sigmoid(self.phi(queries) @ self.weight_)

    def decide(self, query: Query, rng: Rng, *, before: str | None = None, intent: str | None = None) -> Turn:
        """The tier of one turn. before: the tier of the turn before; intent: fast or deep, which overrules the gate."""
        phi = self.phi([query])[0]
        chance = float(sigmoid(phi @ self.weight_))
        if intent in TIERS:
            return Turn(str(intent), 1.0, chance, phi)
        bar = self.tau if before not in TIERS else self.tau + (self.band if before == "fast" else -self.band)
        wanted = int(chance > bar)
        odds = np.full(2, self.explore / 2)
        odds[wanted] += 1 - self.explore
        tier = int(rng.random() < odds[1])
        return Turn(TIERS[tier], float(odds[tier]), chance, phi)

    def feedback(
        self, turn: Turn, *, gain: float | None = None, preferred: str | None = None, switched: bool = False
    ) -> None:
        """Learn from what came of a turn; nothing said at all is feedback too, under `ipw`.

        gain: quality of deep less fast where both were judged. preferred: the tier a user chose of two answers.
        switched: the user went to the other tier by hand.
        """
        if gain is not None:
            self._step(turn, float(gain > 0), WEIGHT["correctness"])
        if preferred is not None:
            if preferred not in TIERS:
                raise ConfigError("preferred", got=preferred, expected=" or ".join(TIERS))
            self._step(turn, float(preferred == "deep"), WEIGHT["preference"])
        if self.ipw and turn.tier == "fast":
            self._step(turn, switched / self.report_rate, min(WEIGHT["switch"] / turn.propensity, CAP))
        elif switched and not self.ipw:
            self._step(turn, float(turn.tier == "fast"), WEIGHT["switch"])

    def _step(self, turn: Turn, label: float, weight: float) -> None:
        self.steps_ += 1
        slope = weight * (label - float(sigmoid(turn.phi @ self.last_))) * turn.phi
        self.last_ = self.last_ + self.rate / np.sqrt(self.steps_) * slope / len(self.last_)
        self.weight_ = self.weight_ + 2 / (self.steps_ + 2) * (self.last_ - self.weight_)  # late steps count more

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("tau", "band", "explore", "rank", "rate", "ipw", "report_rate", "l2")
        params = {name: getattr(self, name) for name in names} | {"steps": self.steps_}
        return params, {"weight": self.weight_, "scale": self.scale_} | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        gate = cls(**{name: value for name, value in params.items() if name != "steps"})
        gate.features_ = Features(*(np.asarray(arrays[name]) for name in Features._fields))
        p = gate.features_.directions.shape[1]
        gate.weight_ = check_shape("weight", np.asarray(arrays["weight"]), (p,))
        gate.scale_ = check_shape("scale", np.asarray(arrays["scale"]), (p,))
        gate.last_, gate.steps_ = gate.weight_.copy(), int(params["steps"])
        return gate


def report_rate_of(gain: Array, switched: Array) -> float:
    """The share of users who switch, among audited fast turns that deep would have won. gain, switched: [n].

    Two pseudo-turns, one of them switched, keep it off 0 and 1 while few were audited.
    """
    won = np.asarray(gain, dtype=float) > 0
    return float((np.asarray(switched, dtype=bool)[won].sum() + 1) / (won.sum() + 2))
