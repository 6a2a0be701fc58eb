"""System 44, AVR (adaptive routing of actions between a small and a large model): risk, difficulty, probe, escalate.

Parts: policies/escalate (threshold over difficulty, confidence, cost), flows/cascade (`verified`). The paper routes
clicks of a computer-using agent by what it sees; here difficulty and confidence are arguments, whatever they look at.
Its thresholds (0.80 below difficulty 0.3, 0.92 above 0.7) are the defaults. `memory` before the probe is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyroute.flows.cascade import Judgement, verified
from polyroute.policies.escalate import DifficultyThreshold
from polyroute.protocols import Flow
from polyroute.types import Candidate, Outcome, Query


def avr(
    query: Query,
    small: Candidate,
    large: Candidate,
    confidence: Callable[[Query, Outcome], float],
    difficulty: Callable[[Query], float],
    risky: Callable[[Query], bool] = lambda query: False,
    threshold: DifficultyThreshold | None = None,
    hopeless: float = 1.0,
) -> Flow:
    """Risky work goes straight to the large model; the rest is tried small and escalated if confidence is too low.

    confidence: calibrated P(right) of the small model's outcome, 0..1. difficulty: 0..1. hopeless: from this difficulty
    on the probe is left out, since it would be paid for nothing.
    """
    rule = threshold or DifficultyThreshold()

    def judge(asked: Query, tried: Sequence[Outcome]) -> Judgement:
        if len(tried) == 2 or (tried and tried[0].decision.candidate_ids == (large.id,)):
            return Judgement(len(tried) - 1)
        hard = difficulty(asked)
        if not tried:
            if risky(asked):
                return Judgement(-1, large, "high risk")
            return Judgement(-1, *((large, "too hard to try") if hard >= hopeless else (small, "probe")))
        sure, wanted = confidence(asked, tried[0]), float(rule(hard))
        if sure >= wanted:
            return Judgement(0)
        return Judgement(0, large, f"confidence {sure:.2f} below {wanted:.2f}")

    return verified(query, judge)
