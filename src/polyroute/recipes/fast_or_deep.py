"""System 26, a fast and a deep tier behind one name, as the GPT-5 system card describes it; the design is inferred.

Intent said outright overrules, then the gate's chance that deep wins, with a band around the bar within a conversation,
then the user's quota, whose empty bucket sends to the tier's mini. What users do comes back as feedback.
Parts: routers/gate, signals/intent, policies/quota.
"""

from __future__ import annotations

from typing import NamedTuple

from polyroute.policies.quota import Quota
from polyroute.routers.gate import ThinkGate, Turn
from polyroute.signals.intent import intent
from polyroute.types import Query, Rng

LIMITS = {"deep": 100, "fast": 1000}  # answers a user and day
MINI = {"deep": "deep-mini", "fast": "fast-mini"}


class Served(NamedTuple):
    """Who serves a turn, and why."""

    tier: str  # fast, deep, or a mini
    turn: Turn  # what the gate decided, for its feedback
    because: str


class FastOrDeep:
    """One conversation turn after the other. Keeps the tier of each conversation and the quota of each user."""

    def __init__(self, gate: ThinkGate, quota: Quota | None = None):
        self.gate, self.quota = gate, Quota(LIMITS, MINI) if quota is None else quota
        self.tier_: dict[str, str] = {}  # conversation -> tier of its last turn

    def serve(self, query: Query, rng: Rng, *, user: str, conversation: str, now_s: float) -> Served:
        wish = intent(query.text)
        turn = self.gate.decide(query, rng, before=self.tier_.get(conversation), intent=wish)
        self.tier_[conversation] = turn.tier
        tier = self.quota.take(user, turn.tier, now_s)
        because = f"asked to be {wish}" if wish else f"P(deep wins) {turn.chance:.2f}"
        return Served(tier, turn, because if tier == turn.tier else f"{because}; quota of {turn.tier} used up")

    def feedback(self, served: Served, *, gain: float | None = None, preferred: str | None = None,
                 switched: bool = False) -> None:  # fmt: skip
        """Feedback on a turn. A switch away from a mini says nothing about the tier and is dropped."""
        if served.tier != served.turn.tier:
            return
        self.gate.feedback(served.turn, gain=gain, preferred=preferred, switched=switched)
