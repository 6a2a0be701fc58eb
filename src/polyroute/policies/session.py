"""Who goes on with a conversation: moving it to another candidate has a price.

Each turn scored on its own makes a conversation bounce between candidates. A move pays for the prefix being read anew
(the warm cache is lost), hands over half-done work, and unsettles the reader; so it must gain more than that. The
same price serves two callers: `keep_or_switch` for one decision by utility, `Sticky` around any policy, so that
Thompson sampling keeps exact propensities. `Sessions` remembers who serves which conversation.
Source: the session guard of vLLM Semantic Router (constants simplified from its code's defaults).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.policies.greedy import Greedy, take
from polyroute.protocols import Policy
from polyroute.types import Array, Candidate, Estimate, Estimates, Objective, Profile, Rng, Selection

MOVING = "moving"  # name of the price among the metrics an inner policy sees


@dataclass(frozen=True, kw_only=True, slots=True)
class StickyConfig:
    """What moving a conversation costs, in units of utility unless said otherwise."""

    margin: float = 0.05  # a gain must exceed the price by this much
    handoff: float = 0.05  # another candidate must find its way into the work
    cache_weight: float = 0.20  # times the warmth: the prefix is read anew
    stay_bias: float = 0.10  # people notice when the voice changes
    min_turns: int = 1  # turns a candidate serves before the next move
    forget_s: float = 300.0  # idle seconds after which a conversation may start afresh: caches are cold by then

    def __post_init__(self) -> None:
        for name in ("margin", "handoff", "cache_weight", "stay_bias"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(name, got=getattr(self, name), expected="units of utility, 0 or more")
        if self.min_turns < 0:
            raise ConfigError("min_turns", got=self.min_turns, expected="a number of turns, 0 or more")
        if not self.forget_s > 0:
            raise ConfigError("forget_s", got=self.forget_s, expected="seconds, above 0")

    def bar(self, warmth: float = 1.0) -> float:
        """What a move must gain. warmth: 0..1, share of the prompt the current candidate holds in its cache."""
        return self.margin + self.handoff + self.stay_bias + self.cache_weight * min(max(warmth, 0.0), 1.0)


class Session(NamedTuple):
    """What is known of one conversation."""

    current: str  # candidate id that served last
    last_s: float  # when, by the caller's clock
    turns: int = 1  # served by it in a row
    tokens: int = 0  # prompt and answer of the last turn: what its cache may hold


class Kept(NamedTuple):
    """One decision about a conversation."""

    column: int  # of the candidate that serves this turn
    switched: bool  # False also for a first turn
    gain: float  # utility of the best allowed over that of the current; 0 where there is no current
    price: float  # what a move had to gain
    because: str


def keep_or_switch(
    ids: Sequence[str],
    utility: Array,
    session: Session | None = None,
    *,
    allowed: Array | None = None,
    now_s: float = 0.0,
    warmth: float = 1.0,
    in_tool_loop: bool = False,
    trust: float = 1.0,
    config: StickyConfig = StickyConfig(),
) -> Kept:
    """Keep the current candidate unless the best gains more than a move costs.

    ids: [m] candidates. utility: [m] of this turn. session: None for a first turn. allowed: [m] bool; None: all.
    now_s: by the clock of `session.last_s`. warmth: see `StickyConfig.bar`. in_tool_loop: tool results are on their
    way back to the one that asked for them, so it stays whatever is gained. trust: 0..1, how much this turn tells
    about what it needs; the gain is multiplied by it, so that at 0 ("yes, do it") the current candidate stays.
    Without a session, after `forget_s` idle, or with the current candidate not allowed, the best is taken.
    Raises: NoCandidateError if nobody is allowed; ShapeError.
    """
    utility = np.asarray(utility, dtype=float)
    may = np.ones(len(ids), dtype=bool) if allowed is None else np.asarray(allowed, dtype=bool)
    for name, array in (("utility", utility), ("allowed", may)):
        if array.shape != (len(ids),):
            raise ShapeError(name, got=array.shape, expected=(len(ids),))
    if not may.any():
        raise NoCandidateError("of this session", dict.fromkeys(ids, "`allowed`"))
    best = int(np.where(may, utility, -np.inf).argmax())
    at = current_column(ids, session, now_s, config)
    if at is None:
        return Kept(best, False, 0.0, 0.0, "first turn" if session is None else "the session is forgotten")
    if not may[at]:
        return Kept(best, True, 0.0, 0.0, f"{ids[at]} is not allowed this turn")
    assert session is not None
    gain = max(float(utility[best] - utility[at]), 0.0)
    price = moving_price(session, warmth=warmth, in_tool_loop=in_tool_loop, config=config)
    if best == at:
        return Kept(at, False, 0.0, price, "the current candidate leads")
    if gain * min(max(trust, 0.0), 1.0) > price:
        return Kept(best, True, gain, price, f"gains {gain:.3f} utility over {ids[at]}, a move costs {price:.3f}")
    return Kept(at, False, gain, price, why_kept(price, trust))


def why_kept(price: float, trust: float) -> str:
    """One line for a person."""
    if price == math.inf:
        return "kept: in a tool loop, or moved too lately"
    return "kept: this turn does not say what it needs" if trust <= 0 else f"kept: a move costs {price:.3f} utility"


def current_column(ids: Sequence[str], session: Session | None, now_s: float, config: StickyConfig) -> int | None:
    """Column of the one that serves the conversation; None for none, one gone from the pool, or one forgotten."""
    if session is None or session.current not in ids or now_s - session.last_s > config.forget_s:
        return None
    return list(ids).index(session.current)


def moving_price(
    session: Session, *, warmth: float = 1.0, in_tool_loop: bool = False, config: StickyConfig = StickyConfig()
) -> float:
    """Utility a move must gain; infinite inside a tool loop and within `min_turns` of the last move."""
    return math.inf if in_tool_loop or session.turns < config.min_turns else config.bar(warmth)


def cached_saving(profile: Profile, cached_tokens: float, *, discount: float = 0.9) -> float:
    """USD that staying saves: the prefix its cache holds is billed at (1 - discount) of the prompt price.

    Subtract it from the current candidate's cost estimate, and set cache_weight to 0: the exact form of warmth.
    """
    return cached_tokens * profile.price_in * discount / 1e6


@dataclass(frozen=True, slots=True)
class Sticky:
    """Charge every candidate but the current one the price of a move, then let another policy choose.

    session, now_s, warmth, in_tool_loop: of the one conversation that the rows belong to. With Greedy it chooses as
    `keep_or_switch` does at full trust; with an exploring policy the propensity is exact at the price charged. The
    weight returned is the utility without the price. ids: [m] candidate ids, in the order of the estimates.
    """

    ids: Sequence[str]
    session: Session | None
    inner: Policy = field(default_factory=Greedy)
    now_s: float = 0.0
    warmth: float = 1.0
    in_tool_loop: bool = False
    config: StickyConfig = StickyConfig()

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection:
        """Selection [n, k] of the inner policy."""
        at = current_column(self.ids, self.session, self.now_s, self.config)
        if at is None or self.session is None:
            return self.inner.decide(estimates, objective, allowed, rng)
        price = moving_price(self.session, warmth=self.warmth, in_tool_loop=self.in_tool_loop, config=self.config)
        others = np.arange(len(self.ids)) != at
        held = allowed[:, at : at + 1]  # [n, 1] a row that may not stay pays nothing
        if price == math.inf:
            return self.inner.decide(estimates, objective, allowed & ~(others & held), rng)
        charged = {**estimates, MOVING: Estimate(np.where(others & held, price, 0.0))}
        priced = Objective({**objective.weights, MOVING: -1.0})
        chosen = self.inner.decide(charged, priced, allowed, rng)
        index = chosen.index
        weight = np.where(index >= 0, take(objective.utility(estimates), np.maximum(index, 0)), 0.0)
        return chosen._replace(weight=weight)


@dataclass(slots=True)
class Sessions:
    """Who serves which conversation: the last `capacity` ones, in memory. Not for several threads at once."""

    capacity: int = 10_000
    forget_s: float = 300.0  # idle seconds; see `StickyConfig`
    book: OrderedDict[str, Session] = field(default_factory=OrderedDict)

    def look(self, key: str, now_s: float) -> Session | None:
        """The conversation, or None if it is not known or was idle for more than `forget_s`."""
        session = self.book.get(key)
        if session is not None and now_s - session.last_s > self.forget_s:
            del self.book[key]
            return None
        return session

    def served(self, key: str, candidate: Candidate | str, now_s: float, tokens: int = 0) -> Session:
        """Note who served a turn. tokens: prompt and answer together."""
        name = candidate if isinstance(candidate, str) else candidate.id
        before = self.look(key, now_s)
        turns = before.turns + 1 if before is not None and before.current == name else 1
        self.book[key] = session = Session(name, now_s, turns, tokens)
        self.book.move_to_end(key)
        while len(self.book) > self.capacity:
            self.book.popitem(last=False)
        return session


def warmth_of(session: Session, prompt_tokens: int | None) -> float:
    """Share of this prompt that the current candidate's cache may hold, 0..1; 1 where tokens were not counted."""
    if not prompt_tokens or not session.tokens:
        return 1.0
    return min(session.tokens / prompt_tokens, 1.0)
