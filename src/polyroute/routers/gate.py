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
CAP = 5.0  # largest inverse propensity of one event


class Turn(NamedTuple):
    """One decision of the gate, as it has to be remembered until its feedback comes."""

    tier: str  # fast or deep
    propensity: float  # P(this tier) when it was chosen
    chance: float  # P(the deep tier wins)
    phi: Array  # [p]


class ThinkGate:
    """Chooses between two tiers, with a band so that a conversation does not flutter, and learns from feedback.

    Deep is entered above tau + band and left below tau - band. With probability `explore` either tier is drawn alike,
    and the propensity says so. Each event of feedback moves a logistic head to the mode of its posterior (an online
    Laplace approximation, so that late events move it as little as they should): correctness (the gain of deep over
    fast, where both were judged) weighs 1, a preference 0.5, a switch 0.3.

    A switch is told by the dissatisfied only. With `ipw` a turn served fast is evidence whether or not its user
    switched: its label is switched / report_rate, which on average is P(deep wins), weighed by 1 / P(fast) and at most
    `cap`, so that queries seldom served fast count as if they had been more often. The labels are right for each query
    whatever its weight, so a cap costs no more than the head's lack of fit, and spares the variance of rare turns.
    Without it each switch is a label of its own, and the gate learns that everybody is dissatisfied.
    l2 holds the features' weights at 0 where judged pairs teach, l2_online where users do: more strongly, since what is
    taken for deep too often is seldom served fast and so slow to be put right.
    report_rate: the share of users better served by deep who do switch, from `report_rate_of` audited turns. A switch
    that a quota caused is no feedback: leave it out.
    Source: the GPT-5 system card names the signals; all else is inferred.
    """

    def __init__(
        self, tau: float = 0.5, band: float = 0.05, explore: float = 0.01, *, rank: int = 32, ipw: bool = True,
        cap: float = CAP, report_rate: float = 0.3, l2: float = 10.0, l2_online: float = 100.0,
    ):  # fmt: skip
        for name, value in (("tau", tau), ("band", band), ("explore", explore), ("report_rate", report_rate)):
            if not 0 <= value <= 1:
                raise ConfigError(name, got=value, expected="a share, 0 to 1")
        if report_rate == 0 or not min(l2, l2_online) > 0:
            raise ConfigError(
                "report_rate, l2, l2_online", got=(report_rate, l2, l2_online), expected="numbers above 0"
            )
        if not cap >= 1:
            raise ConfigError("cap", got=cap, expected="a weight, 1 or more")
        self.tau, self.band, self.explore, self.rank = tau, band, explore, rank
        self.ipw, self.cap, self.report_rate, self.l2, self.l2_online = ipw, cap, report_rate, l2, l2_online
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
        self.weight_ = np.zeros(phi.shape[1])
        self.weight_[0] = np.log(chance / (1 - chance))
        self.covariance_ = np.diag(1 / np.append(1.0, np.full(phi.shape[1] - 1, self.l2_online)))
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
        won, penalty = (gain > 0).astype(float), np.append(1e-3, np.full(phi.shape[1] - 1, self.l2))
        self.weight_, self.covariance_ = logistic_posterior(phi, won, np.zeros(len(phi)), penalty)
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
            weight = WEIGHT["switch"] * min(1 / turn.propensity, self.cap)
            self._step(turn, float(switched), weight, self.report_rate)
        elif switched and not self.ipw:
            self._step(turn, float(turn.tier == "fast"), WEIGHT["switch"])

    def _step(self, turn: Turn, label: float, weight: float, report: float = 1.0) -> None:
        """Towards one more label of this weight, seen where it is 1 with probability `report` only: P = report * p."""
        gain = self.covariance_ @ turn.phi
        p = float(sigmoid(turn.phi @ self.weight_))
        seen = report * p
        slope = weight * (label - seen) * (1 - p) / (1 - seen)  # of the log likelihood, in the logit
        curve = weight * seen * (1 - p) ** 2 / (1 - seen)  # its expected curvature
        spread = float(turn.phi @ gain)
        self.weight_ = self.weight_ + gain * (slope / (1 + curve * spread))
        self.covariance_ = self.covariance_ - np.outer(gain, gain) * (curve / (1 + curve * spread))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("tau", "band", "explore", "rank", "ipw", "cap", "report_rate", "l2", "l2_online")
        arrays = {"weight": self.weight_, "covariance": self.covariance_, "scale": self.scale_}
        return {name: getattr(self, name) for name in names}, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        gate = cls(**params)
        gate.features_ = Features(*(np.asarray(arrays[name]) for name in Features._fields))
        p = gate.features_.directions.shape[1]
        gate.weight_ = check_shape("weight", np.asarray(arrays["weight"]), (p,))
        gate.scale_ = check_shape("scale", np.asarray(arrays["scale"]), (p,))
        gate.covariance_ = check_shape("covariance", np.asarray(arrays["covariance"]), (p, p))
        return gate


def report_rate_of(gain: Array, switched: Array) -> float:
    """The share of users who switch, among audited fast turns that deep would have won. gain, switched: [n].

    Two pseudo-turns, one of them switched, keep it off 0 and 1 while few were audited.
    """
    won = np.asarray(gain, dtype=float) > 0
    return float((np.asarray(switched, dtype=bool)[won].sum() + 1) / (won.sum() + 2))
