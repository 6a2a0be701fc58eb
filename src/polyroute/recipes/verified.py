"""System 93, small model by default and larger ones where its answer does not convince: the verified cascade.

Parts: signals/answer (texts to numbers), routers/cascade (a router before the answer, a verifier after it, a plan),
flows/cascade (`verified`), offline/replay. The survey of small language models for agents names validators, calibrated
confidence and the cost per success; the plan by optimal stopping is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.flows.cascade import Judge, Judgement, verified
from polyroute.offline.choose import cost_router
from polyroute.offline.frontier import TRADE_OFFS, Curve
from polyroute.offline.replay import Answers, replayed
from polyroute.protocols import Flow, Router
from polyroute.routers.cascade import Cascade, Reading
from polyroute.routers.cluster import Cluster
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix
from polyroute.routers.verifier import Evidence
from polyroute.signals.answer import DIM, KINDS, agreement, answer_features
from polyroute.types import Array, Candidate, Outcome, Outcomes, Query


def verified_cascade(prior: Router | None = None, **options: int | float) -> Cascade:
    """A cascade to fit on recorded answers. prior: predicts quality before the answer; None: a mix of simple ones."""
    before = Mix([KNN(80, 20.0), Linear("quality", l2=3.0), Cluster(32)]) if prior is None else prior
    return Cascade(before, cost_router(), **options)  # type: ignore[arg-type]


def evidence_of(outcomes: Outcomes, answers: Answers) -> Evidence:
    """Every recorded answer of a table as numbers; zeros where none was recorded."""
    n, m = outcomes.observed.shape
    features, same = np.zeros((n, m, DIM)), np.zeros((n, m, m))
    for i, query in enumerate(outcomes.queries):
        there = [j for j, c in enumerate(outcomes.pool) if (query.id, c.id) in answers]
        texts = [answers[query.id, outcomes.pool[j].id] for j in there]
        if there:
            features[i, there] = [answer_features(query.text, text) for text in texts]
            same[np.ix_([i], there, there)] = agreement(texts)
    return Evidence(features, same, len(KINDS))


def with_answers(outcomes: Outcomes, answers: Answers) -> Outcomes:
    """The queries to which every candidate's answer was recorded."""
    return outcomes.take(
        np.array([all((q.id, c.id) in answers for c in outcomes.pool) for q in outcomes.queries], bool)
    )


class Bench:
    """Judges for a fitted cascade. What a set of answers says is kept, since it is the same at every trade-off."""

    def __init__(self, cascade: Cascade, pool: Sequence[Candidate], keep: int = 100_000):
        self.cascade, self.pool, self.keep = cascade, list(pool), keep
        self.place = {candidate.id: j for j, candidate in enumerate(self.pool)}
        self.before: dict[tuple[str, str], tuple[Array, Array]] = {}
        self.readings: dict[tuple[str, ...], Reading] = {}

    def judge(self, trade_off: float) -> Judge:
        """For `flows.cascade.verified`. trade_off: of cost against quality, as in offline/frontier."""

        def judged(query: Query, tried: Sequence[Outcome]) -> Judgement:
            verdict = self.cascade.decide(self.reading(query, tried), trade_off)
            keep, ask, gain = int(verdict.keep[0]), int(verdict.ask[0]), float(verdict.gain[0])
            names = [self.place[outcome.decision.candidate_ids[0]] for outcome in tried]
            place = names.index(keep) if keep in names else -1
            if ask < 0:
                return Judgement(place, None, "")
            sure = f"right {float(verdict.right[0]):.2f}, gain {gain:+.3f} after its price" if tried else "first try"
            return Judgement(place, self.pool[ask], sure)

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
            self.before[query.id, query.text] = said["quality"].mean, said["cost"].mean
        expected, price = self.before[query.id, query.text]
        m, at = len(self.pool), [self.place[name] for name in names]
        features, same, asked = np.zeros((1, m, DIM)), np.zeros((1, m, m)), np.zeros((1, m), bool)
        if at:
            asked[0, at] = True
            features[0, at] = [answer_features(query.text, outcome.text) for outcome in tried]
            same[np.ix_([0], at, at)] = agreement([outcome.text for outcome in tried])
        return self.cascade.read(expected, price, Evidence(features, same, len(KINDS)), asked, self.pool)


def verified_cascade_curve(
    train: Outcomes,
    test: Outcomes,
    answers: Answers,
    trade_offs: Sequence[float] = TRADE_OFFS,
    cascade: Cascade | None = None,
    name: str = "verified cascade",
) -> Curve:
    """Fit on the recorded answers of `train`, replay the flow on `test`: a curve to stand beside routers' curves.

    answers: of both tables, from data.recorded.recorded_answers. Queries without all answers are left out of
    training; in `test` every answer the flow asks for must be there. cascade: not fitted; None: the default.
    """
    learned = with_answers(train, answers)
    fitted = (cascade or verified_cascade()).fit(learned, evidence_of(learned, answers))
    return replayed(name, Bench(fitted, test.pool).flow, test, trade_offs, answers).curve


def cost_per_success(cost: Array, success: Array) -> float:
    """USD paid for one right answer: the cost [n] of all attempts, failed ones too, over the successes [n] in 0..1.

    Infinite where nothing succeeded.
    """
    good = float(np.sum(success))
    return float(np.sum(cost)) / good if good > 0 else float("inf")
