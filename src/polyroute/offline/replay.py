"""Flows judged by recorded answers: the very text that runs live, replayed query by query at each trade-off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.flows.cascade import recorded, run
from polyroute.offline.frontier import Curve
from polyroute.protocols import Flow
from polyroute.types import Array, Decision, Outcome, Outcomes, Query

Answers = Mapping[tuple[str, str], str]  # (query id, candidate id) -> text


class Replayed(NamedTuple):
    """A curve, and who was asked on the way to it."""

    curve: Curve
    asked: Array  # [p, m] share of queries for which each candidate was asked


def replayed(
    name: str,
    flow: Callable[[Query, float], Flow],
    outcomes: Outcomes,
    trade_offs: Sequence[float],
    answers: Answers | None = None,
) -> Replayed:
    """What a flow yields at each trade-off. Its outcome's cost counts, so a flow pays for everything it asked.

    flow: (query, trade-off) -> a fresh flow. outcomes: a table without holes where the flow will look.
    """
    backend, place = recorded(outcomes, answers), {c.id: j for j, c in enumerate(outcomes.pool)}
    asked = np.zeros((len(trade_offs), len(outcomes.pool)))
    quality, cost = (np.empty((len(trade_offs), len(outcomes))) for _ in range(2))
    for p, trade_off in enumerate(trade_offs):

        def watch(decision: Decision, p: int = p) -> Outcome:
            asked[p, place[decision.candidate_ids[0]]] += 1
            return backend(decision)

        for i, query in enumerate(outcomes.queries):
            metrics = run(flow(query, trade_off), watch).metrics
            quality[p, i], cost[p, i] = metrics["quality"], metrics["cost"]
    return Replayed(Curve(name, quality, cost), asked / max(len(outcomes), 1))


def gap_closed(found: float, mix: float, oracle: float) -> float:
    """Share of the way from the random mix to the oracle, by AIQ."""
    return (found - mix) / (oracle - mix) if oracle > mix else float("nan")
