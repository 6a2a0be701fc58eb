"""Judges for a flow that reads answers: a fitted cascade, shown the texts of a live or a recorded backend alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.flows.cascade import Judge, Judgement, verified
from polyroute.protocols import Flow
from polyroute.routers.cascade import Cascade, Reading
from polyroute.routers.verifier import Evidence
from polyroute.signals.answer import DIM, KINDS, agreement, answer_features
from polyroute.types import Array, Candidate, Outcome, Query


class Bench:
    """Judges for a fitted cascade. What a set of answers says is kept, since it is the same at every trade-off."""

    def __init__(self, cascade: Cascade, pool: Sequence[Candidate], keep: int = 100_000):
        self.cascade, self.pool, self.keep = cascade, list(pool), keep
        self.place = {candidate.id: j for j, candidate in enumerate(self.pool)}
        self.before: dict[tuple[str, str], tuple[Array, Array]] = {}
        self.readings: dict[tuple[str, ...], Reading] = {}

    def expect(self, query: Query, quality: Array, cost: Array) -> None:
        """What `Cascade.predict` says of a query, where it was asked already. quality, cost: [1, m] of the pool."""
        self.before[query.id, query.text] = quality, cost

    def judge(self, trade_off: float) -> Judge:
        """For `flows.cascade.verified`. trade_off: of cost against quality, as in offline/frontier."""

        def judged(query: Query, tried: Sequence[Outcome]) -> Judgement:
            verdict = self.cascade.decide(self.reading(query, tried), trade_off)
            keep, ask, gain = int(verdict.keep[0]), int(verdict.ask[0]), float(verdict.gain[0])
            names = [self.place[outcome.decision.candidate_ids[0]] for outcome in tried]
            place = names.index(keep) if keep in names else -1
            right = float(verdict.right[0]) if tried else None
            if ask < 0:
                return Judgement(place, None, "", right)
            why = "first try" if right is None else f"right {right:.2f}, gain {gain:+.3f} after its price"
            return Judgement(place, self.pool[ask], why, right)

        return judged

    def flow(self, query: Query, trade_off: float) -> Flow:
        """A fresh flow for one query."""
        return verified(query, self.judge(trade_off))

    def reading(self, query: Query, tried: Sequence[Outcome]) -> Reading:
        """What the answers so far say."""
        names = [outcome.decision.candidate_ids[0] for outcome in tried]
        key = (query.id, query.text, *names, *(outcome.text for outcome in tried))
        if key not in self.readings:
            if len(self.readings) >= self.keep:
                self.readings.clear()
                self.before.clear()
            self.readings[key] = self._read(query, tried, names)
        return self.readings[key]

    def _read(self, query: Query, tried: Sequence[Outcome], names: Sequence[str]) -> Reading:
        if (query.id, query.text) not in self.before:
            said = self.cascade.predict([query], self.pool)
            self.expect(query, said["quality"].mean, said["cost"].mean)
        expected, price = self.before[query.id, query.text]
        m, at = len(self.pool), [self.place[name] for name in names]
        features, same, asked = np.zeros((1, m, DIM)), np.zeros((1, m, m)), np.zeros((1, m), bool)
        if at:
            asked[0, at] = True
            features[0, at] = [answer_features(query.text, outcome.text) for outcome in tried]
            same[np.ix_([0], at, at)] = agreement([outcome.text for outcome in tried])
        return self.cascade.read(expected, price, Evidence(features, same, len(KINDS)), asked, self.pool)
