"""System 51, HyDRA: predict what a request needs, take the cheapest model that covers it, and stay with it.

Needs per dimension against profiles per model; the cheapest whose shortfall is at most tau; decided on the first turn
and after a summary, and whenever a move pays for the cache it loses. The predictor learns from outcomes of any models,
also of others than those routed to; a new model is one line of configuration. What differs from the paper: a logistic
head a dimension on the featuriser's embedding stands for the encoder, and the labels are shares of models that fail,
where the paper has an annotating language model (inferred there).
Parts: routers/match, routers/price, policies/shortfall, policies/session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute.decide import permit
from polyroute.policies.session import Kept, Session, StickyConfig, keep_or_switch
from polyroute.policies.shortfall import Shortfall
from polyroute.protocols import Constraint, Router
from polyroute.routers.match import Match
from polyroute.types import Array, Candidate, Objective, Outcomes, Query

COVERS = Objective({"shortfall": -1.0})  # how much better a move covers what is needed, in units of shortfall
STAY = StickyConfig(margin=0.005, handoff=0.0, cache_weight=0.01, stay_bias=0.0)  # in units of shortfall too
FLOOR = 0.1  # a turn that needs no more than this of anything says little about what the conversation needs


class HyDRA:
    """Needs, gates, the cheapest that covers them, and a session that stays.

    match: fitted, and calibrated on the pool. cost: a router of "cost". tau: see `policies/shortfall.py`.
    gates: hard constraints (health, context, capabilities), checked first.
    """

    def __init__(self, match: Match, cost: Router, *, tau: float = 0.05, gates: Sequence[Constraint] = ()):
        self.match, self.cost, self.tau, self.gates = match, cost, tau, list(gates)

    def fit(self, outcomes: Outcomes) -> Self:
        """Fit needs and costs on one table."""
        self.match.fit(outcomes)
        self.cost.fit(outcomes)
        return self

    def choose(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        """The column for each query, [n] int, every query taken as a first turn."""
        allowed, _ = permit(queries, pool, self.gates)
        estimates = {**self.match.predict(queries, pool), **self.cost.predict(queries, pool)}
        chosen = Shortfall(self.tau).decide(estimates, COVERS, allowed, np.random.default_rng(0))
        index: Array = chosen.index[:, 0]
        return index

    def turn(
        self, query: Query, pool: Sequence[Candidate], session: Session | None, now_s: float, *,
        warmth: float = 1.0, in_tool_loop: bool = False,
    ) -> Kept:  # fmt: skip
        """One turn of a conversation. The session's model stays if it covers the need, or if the turn says little.

        Otherwise it moves only to one that covers the need better by more than a move costs. After a summary the cache
        is cold: pass session=None, and the turn is a first one.
        """
        ids = [c.id for c in pool]
        (best,) = self.choose([query], pool)
        allowed, _ = permit([query], pool, self.gates)
        short = self.match.predict([query], pool)["shortfall"].mean[0]
        over = -np.maximum(short - self.tau, 0.0)  # what covers the need is as good as any other that does
        over[best] += 1e-9  # of those, the cheapest is where a first turn goes
        trust = float(self.match.needs([query]).mean.max() > FLOOR)
        return keep_or_switch(
            ids, over, session, allowed=allowed[0], now_s=now_s, warmth=warmth, in_tool_loop=in_tool_loop, trust=trust,
            config=STAY,
        )  # fmt: skip
