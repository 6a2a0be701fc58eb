"""System 93, small model by default and larger ones where its answer does not convince: the verified cascade.

Parts: signals/answer (texts to numbers), routers/cascade (a router before the answer, a verifier after it, a plan),
flows/cascade (`verified`), offline/replay. The survey of small language models for agents names validators, calibrated
confidence and the cost per success; the plan by optimal stopping is our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.flows.judging import Bench
from polyroute.offline.choose import cost_router
from polyroute.offline.frontier import TRADE_OFFS, Curve
from polyroute.offline.replay import Answers, replayed
from polyroute.protocols import Router
from polyroute.routers.cascade import Cascade
from polyroute.routers.cluster import Cluster
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix
from polyroute.routers.verifier import Evidence
from polyroute.signals.answer import DIM, KINDS, agreement, answer_features
from polyroute.types import Array, Outcomes


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
