"""The gateway's decision: signals of one request, the pool it may go to, and the policy the client named."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from polyroute.constraints import fits_context, healthy, offers_needs
from polyroute.decide import Weighing, weigh
from polyroute.errors import NoCandidateError
from polyroute.flows.cascade import Judge
from polyroute.flows.judging import Bench
from polyroute.gateway.asked import Asked, Signals, half, of_row, read_signals, with_embedding
from polyroute.gateway.conversations import NONE, Conversations, Thread
from polyroute.gateway.guards import CLEAN, Verdict
from polyroute.gateway.records import DecisionRecord, Weighed
from polyroute.gateway.rounds import Rounds
from polyroute.gateway.wire import BadRequestError
from polyroute.policies.session import StickyConfig
from polyroute.protocols import Constraint, Featuriser, Policy, Router
from polyroute.routers.cascade import Cascade
from polyroute.signals import is_quick
from polyroute.types import Array, Candidate, Decision, Estimates, Objective, Query, Rng

BEHIND = ("held back", "explores behind")  # how a reason begins where another candidate has the higher utility
REFERENCE_PROMPT, REFERENCE_COMPLETION = 600, 200  # tokens of the request that turns a trade-off into USD


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedPolicy:
    """A virtual model: how to weigh, how to choose, among which candidates."""

    name: str
    policy: Policy
    objective: Objective
    pool: Sequence[Candidate]
    constraints: Sequence[Constraint] = ()
    trade_off: float | None = None
    sticky: StickyConfig | None = None  # what it costs to move a conversation; None: nothing
    settle: Callable[[float], None] | None = None  # told the USD of each finished request; budgets pace themselves
    cascade: Cascade | None = None  # reads an answer before another is paid for; None: nobody does


class Choice(NamedTuple):
    """A decision on its way: the candidates to try in order, and what is written down."""

    ranked: list[Candidate]
    record: DecisionRecord
    policy: ServedPolicy | None  # None: the client named a concrete model
    thread: Thread = NONE
    query: Query | None = None
    judge: Judge | None = None  # reads the answers as they come; None: the first answer is taken
    took: tuple[float, float] = (0.0, 0.0)  # seconds of reading the request and of deciding it


def new_id(prefix: str, pool: list[str] = []) -> str:  # noqa: B006  # the ids drawn ahead are shared on purpose
    """A fresh unguessable id: prefix and 24 hex digits, 11 of the time in 2**20 ns and 13 random ones.

    Ids that grow with time are added at the end of the journal's index, not all over it. Random bytes are fetched for
    256 ids at a time.
    """
    if not pool:
        digits = secrets.token_hex(13 * 128)
        pool.extend(digits[i : i + 13] for i in range(0, len(digits), 13))
    return f"{prefix}_{hex(time.time_ns() >> 20)[2:]}{pool.pop()}"


def usd_of(candidate: Candidate, prompt_tokens: float, completion_tokens: float) -> float:
    """The price of that many tokens at this candidate, USD."""
    profile = candidate.profile
    return (prompt_tokens * profile.price_in + completion_tokens * profile.price_out) / 1e6


def reference_cost(pool: Sequence[Candidate]) -> float:
    """USD of the reference request at the dearest candidate: what a trade-off of 1 sets equal to all of quality."""
    return max((usd_of(c, REFERENCE_PROMPT, REFERENCE_COMPLETION) for c in pool), default=0.0)


def objective_for(trade_off: float, pool: Sequence[Candidate]) -> Objective:
    """Quality less trade_off for each reference cost spent."""
    dearest = reference_cost(pool)
    return Objective({"quality": 1.0, "cost": -trade_off / dearest if dearest > 0 else 0.0})


@dataclass(kw_only=True)
class Brain:
    """Holds the pool, the router and the policies, and decides one request at a time."""

    pool: Sequence[Candidate]
    policies: Mapping[str, ServedPolicy]
    router: Router
    featuriser: Featuriser
    router_name: str = ""
    artefact: str = ""
    store: str = "features"  # what the journal keeps of a request: features, prompts or nothing
    rng: Rng = field(default_factory=np.random.default_rng)
    down: dict[str, float] = field(default_factory=dict)  # candidate id -> monotonic time it may be tried again
    missing: frozenset[str] = frozenset()  # candidates whose backend cannot answer at all
    measured: Mapping[str, str] = field(default_factory=dict)  # candidate id -> when and how its profile was measured
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.conversations = Conversations()
        self.rounds: Rounds[Asked, Choice | Signals] = Rounds(self.decide_all)
        self.by_id = {candidate.id: candidate for candidate in self.pool}
        prices = {(c.profile.price_in, c.profile.price_out) for c in self.pool}
        self.dearest = [p for p in prices if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in prices)]
        self.smallest_context = min((c.profile.context or float("inf") for c in self.pool), default=0.0)

    def dearest_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What that many tokens cost at the dearest candidate of the pool, USD."""
        most = 0.0
        for price_in, price_out in self.dearest:
            usd = prompt_tokens * price_in + completion_tokens * price_out
            if usd > most:  # a call of max() a price takes as long as all of this
                most = usd
        return most / 1e6

    async def decide(self, asked: Asked, *, company: bool = False) -> Choice:
        """Read and weigh one request. Long texts are embedded off the event loop.

        company: other requests may be on their way to a decision, and those of this turn are decided in a round.
        Raises: BadRequestError or msgspec.MsgspecError for a request that says nothing to route on; NoCandidateError
        when every candidate is ruled out.
        """
        found = await self.rounds.ask(asked) if company else self.decide_all([asked])[0]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, Choice):
            return found
        begin = perf_counter()
        pending = self.embed(found.query.text)
        embedding = await pending if isinstance(pending, Awaitable) else pending
        middle = perf_counter()
        signals = found._replace(query=with_embedding(found.query, embedding), stored=half(embedding).tobytes())
        choice = self.choose(asked, signals)
        return choice._replace(took=(middle - begin, perf_counter() - middle))

    def decide_all(self, asked: Sequence[Asked]) -> list[Choice | Signals | Exception]:
        """Decide requests in one go: the choice of each, or the error it ends in.

        Of one with a long text, the signals without the embedding and what hangs on it.
        """
        begin = perf_counter()
        found: list[Any] = self.read_all(asked)
        middle = perf_counter()
        for i, one in enumerate(found):
            if isinstance(one, Signals) and one.query.embedding is not None:
                try:
                    found[i] = self.choose(asked[i], one)
                except NoCandidateError as error:
                    found[i] = error
        took = (middle - begin) / len(asked), (perf_counter() - middle) / len(asked)
        return [one._replace(took=took) if isinstance(one, Choice) else one for one in found]

    def read_all(self, asked: Sequence[Asked]) -> list[Signals | Exception]:
        """Text, needs, token count, embedding and estimates of requests, one array for all that share a pool."""
        found: list[Any] = []
        quick: dict[int, list[int]] = {}  # pool -> requests
        for i, (view, policy, _, endpoint, _, _, session, tenant, *_) in enumerate(asked):
            try:
                text, needs, num_tokens, thread = read_signals(view, endpoint, session, tenant)
            except (BadRequestError, msgspec.MsgspecError) as error:
                found.append(error)
                continue
            found.append(Signals(Query("", text, None, needs, num_tokens, view.max_output), thread))
            if is_quick(self.featuriser, text):
                quick.setdefault(id(policy.pool), []).append(i)
        for rows in quick.values():
            bare = [found[i].query for i in rows]
            embeddings = self.featuriser([query.text for query in bare])
            queries = list(map(with_embedding, bare, embeddings))
            estimates = self.router.predict(queries, asked[rows[0]].policy.pool)
            for k, (i, query, kept) in enumerate(zip(rows, queries, half(embeddings), strict=True)):
                found[i] = Signals(query, found[i].thread, of_row(estimates, k), kept.tobytes())
        return found

    def embed(self, text: str) -> Array | Awaitable[Array]:
        """[d], at once for a short text, else a future."""
        if is_quick(self.featuriser, text):
            return self.featuriser([text])[0]
        return asyncio.get_running_loop().run_in_executor(None, lambda: self.featuriser([text])[0])

    def choose(self, asked: Asked, signals: Signals) -> Choice:
        """Weigh what a request tells. Raises: NoCandidateError when every candidate is ruled out."""
        policy, verdict = asked.policy, asked.verdict
        objective = policy.objective if asked.trade_off is None else objective_for(asked.trade_off, policy.pool)
        decision_id = new_id("dec")
        seen = signals.query
        query = Query(decision_id, seen.text, seen.embedding, seen.needs, seen.num_tokens, seen.max_output)
        constraints = [*verdict.constraints, *policy.constraints]
        if query.needs:
            constraints.append(offers_needs)
        if (query.num_tokens or 0) + (query.max_output or 0) > self.smallest_context:
            constraints.append(fits_context)
        if (self.down or self.missing) and (out := self.out_of_service()):
            constraints.append(healthy(out))
        now, chooser = self.clock(), policy.policy
        held = None if policy.sticky is None else self.conversations.current(signals.thread, now)
        if held is not None and policy.sticky is not None:
            chooser = self.conversations.policy(
                chooser, policy.pool, signals.thread, held, now, policy.sticky, query.num_tokens
            )
        weighing = weigh(
            [query], policy.pool, self.router, chooser, objective, constraints, self.rng, signals.estimates
        )
        decision = weighing.decisions[0]
        reason = decision.because
        if held is not None and held.current == decision.candidate_ids[0] and reason.startswith(BEHIND):
            reason = f"goes on with the conversation; {reason}"
        ranked, judge, propensity = self.ranked(weighing, decision, policy.pool), None, decision.propensity
        if asked.readable and policy.cascade is not None and held is None:
            judge = judge_of(policy.cascade, query, ranked, objective, weighing.estimates, policy.pool)
            if judge is not None and (first := judge(query, []).ask) is not None:
                ranked = [first, *(c for c in ranked if c.id != first.id)]
                propensity, reason = 1.0, "asked first; its answer is read before another is paid for"
        record = DecisionRecord(
            id=decision_id, request_id=asked.request_id, time=now, endpoint=asked.endpoint, requested=asked.requested,
            policy=policy.name, selected=ranked[0].id, propensity=propensity,
            because=reason, candidates=weighed(weighing, policy.pool), weights=dict(objective.weights),
            router=self.router_name, artefact=self.artefact, features=self.featuriser.name,
            embedding=None if self.store == "nothing" else signals.stored,
            prompt=seen.text if self.store == "prompts" else None, needs=sorted(query.needs),
            prompt_tokens=query.num_tokens, session=asked.session, tenant=asked.tenant, dry_run=asked.dry_run,
            guards=verdict.flags,
        )  # fmt: skip
        return Choice(ranked, record, policy, signals.thread, query, judge)

    def named(
        self, candidate: Candidate, *, endpoint: str, request_id: str, session: str | None, tenant: str | None,
        verdict: Verdict = CLEAN,
    ) -> Choice:  # fmt: skip
        """The client named a concrete model: nothing to weigh, still written down.

        Raises NoCandidateError where a guard keeps the request from that model.
        """
        if verdict.models is not None and candidate.id not in verdict.models:
            raise NoCandidateError(request_id, {candidate.id: f"guard {' and '.join(verdict.flags)}"})
        record = DecisionRecord(
            id=new_id("dec"), request_id=request_id, time=self.clock(), endpoint=endpoint, requested=candidate.id,
            policy="named", selected=candidate.id, propensity=1.0, because="named by the client", session=session,
            tenant=tenant, guards=verdict.flags,
        )  # fmt: skip
        return Choice([candidate], record, None)

    def ranked(self, weighing: Weighing, decision: Decision, pool: Sequence[Candidate]) -> list[Candidate]:
        """The chosen candidates first, then the other allowed ones by utility: the order of fallbacks."""
        order = [self.by_id[c] for c in decision.candidate_ids]
        out = {*decision.candidate_ids, *weighing.refused[0]}
        rest = [(-u, j) for j, u in enumerate(weighing.utility.tolist()[0]) if pool[j].id not in out]
        return order + [pool[j] for _, j in sorted(rest)]

    def out_of_service(self) -> frozenset[str]:
        """Candidates that are down, and those that failed lately; each of these is tried again once its time is up."""
        now = time.monotonic()
        for candidate_id in [c for c, until in self.down.items() if until <= now]:
            del self.down[candidate_id]
        return self.missing.union(self.down)


def judge_of(
    cascade: Cascade, query: Query, allowed: Sequence[Candidate], objective: Objective, estimates: Estimates,
    pool: Sequence[Candidate],
) -> Judge | None:  # fmt: skip
    """Who reads the answers of one request; None where fewer than two of those allowed are ones it learned from.

    estimates: [1, m] of the pool.
    """
    known = [candidate for candidate in allowed if candidate.id in (cascade.rungs_ or ())]
    quality = objective.weights.get("quality", 0.0)
    if len(known) < 2 or quality <= 0:
        return None
    usd = -objective.weights.get("cost", 0.0) / quality  # quality given up for a USD
    bench, at = Bench(cascade, known), [pool.index(candidate) for candidate in known]
    bench.expect(query, estimates["quality"].mean[:, at], estimates["cost"].mean[:, at])
    return bench.judge(max(0.0, usd * cascade.reference_))


def weighed(weighing: Weighing, pool: Sequence[Candidate]) -> list[Weighed]:
    """One record a candidate: its estimates, its utility, and what ruled it out."""
    means = {name: estimate.mean.tolist()[0] for name, estimate in weighing.estimates.items()}
    stds = {name: e.std.tolist()[0] for name, e in weighing.estimates.items() if e.std is not None}
    utility, refused = weighing.utility.tolist()[0], weighing.refused[0]
    return [
        Weighed(
            id=candidate.id,
            mean={name: row[j] for name, row in means.items()},
            std={name: row[j] for name, row in stds.items()},
            utility=utility[j],
            refused=refused.get(candidate.id),
        )
        for j, candidate in enumerate(pool)
    ]
