"""The gateway's decision: signals of one request, the pool it may go to, and the policy the client named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from polyroute.constraints import fits_context, healthy, offers_needs
from polyroute.decide import weigh
from polyroute.errors import NoCandidateError
from polyroute.gateway.asked import Asked, Signals, half, of_row, of_rows, read_signals, with_embedding
from polyroute.gateway.choice import Choice, ServedPolicy, in_order, judge_of, new_id, objective_for, weighed
from polyroute.gateway.conversations import Conversations
from polyroute.gateway.guards import CLEAN, Verdict
from polyroute.gateway.records import DecisionRecord
from polyroute.gateway.rounds import Rounds
from polyroute.gateway.wire import BadRequestError
from polyroute.policies.session import Session
from polyroute.protocols import Constraint, Featuriser, Router
from polyroute.signals import is_quick
from polyroute.types import Array, Candidate, Query, Rng

BEHIND = ("held back", "explores behind")  # how a reason begins where another candidate has the higher utility


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
        choice = self.choose([asked], [signals])[0]
        if isinstance(choice, NoCandidateError):
            raise choice
        return choice._replace(took=(middle - begin, perf_counter() - middle))

    def decide_all(self, asked: Sequence[Asked]) -> list[Choice | Signals | Exception]:
        """Decide requests in one go: the choice of each, or the error it ends in.

        Of one with a long text, the signals without the embedding and what hangs on it.
        """
        begin = perf_counter()
        found: list[Any] = self.read_all(asked)
        middle = perf_counter()
        alike: dict[object, list[int]] = {}  # requests that one weighing can decide
        for i, one in enumerate(found):
            if isinstance(one, Signals) and one.query.embedding is not None:
                alike.setdefault(self.kind_of(asked[i], one, i), []).append(i)
        for rows in alike.values():
            some = self.choose([asked[i] for i in rows], [found[i] for i in rows])
            for i, choice in zip(rows, some, strict=True):
                found[i] = choice
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

    def kind_of(self, asked: Asked, signals: Signals, number: int) -> object:
        """Equal for requests of one policy and trade-off; one that a guard or a conversation binds is its own kind."""
        if asked.verdict.models is not None or self.held(asked, signals) is not None:
            return number
        return id(asked.policy), asked.trade_off

    def held(self, asked: Asked, signals: Signals) -> Session | None:
        """The conversation that a move to another model would cost something."""
        if asked.policy.sticky is None:
            return None
        return self.conversations.current(signals.thread, self.clock())

    def choose(self, asked: Sequence[Asked], signals: Sequence[Signals]) -> list[Choice | NoCandidateError]:
        """Weigh what requests of one kind tell; NoCandidateError where every candidate is ruled out."""
        try:
            return list(self.choose_together(asked, signals))
        except NoCandidateError as error:
            if len(asked) == 1:
                return [error]
        return [self.choose([one], [told])[0] for one, told in zip(asked, signals, strict=True)]

    def choose_together(self, asked: Sequence[Asked], signals: Sequence[Signals]) -> list[Choice]:
        """The choices of requests of one kind. Raises: NoCandidateError of the first that nobody may serve."""
        lead, now = asked[0], self.clock()
        policy, pool = lead.policy, lead.policy.pool
        objective = policy.objective if lead.trade_off is None else objective_for(lead.trade_off, pool)
        queries = [
            Query(new_id("dec"), seen.text, seen.embedding, seen.needs, seen.num_tokens, seen.max_output)
            for seen in [one.query for one in signals]
        ]
        chooser, held = policy.policy, self.held(lead, signals[0])
        if held is not None and policy.sticky is not None:
            thread, tokens = signals[0].thread, queries[0].num_tokens
            chooser = self.conversations.policy(chooser, pool, thread, held, now, policy.sticky, tokens)
        weighing = weigh(
            queries, pool, self.router, chooser, objective, self.constraints(lead, queries), self.rng,
            of_rows([one.estimates for one in signals]),
        )  # fmt: skip
        choices, weights = [], dict(objective.weights)
        rows = zip(asked, signals, queries, weighing.decisions, weighed(weighing, pool), strict=True)
        for i, (one, told, query, decision, row) in enumerate(rows):
            judge, propensity, reason = None, decision.propensity, decision.because
            ranked = in_order(decision.candidate_ids, pool, row)
            if held is not None and held.current == ranked[0].id and reason.startswith(BEHIND):
                reason = f"goes on with the conversation; {reason}"
            if one.readable and policy.cascade is not None and held is None:
                judge = judge_of(policy.cascade, query, ranked, objective, of_row(weighing.estimates, i), pool)
                if judge is not None and (first := judge(query, []).ask) is not None:
                    ranked = [first, *(c for c in ranked if c.id != first.id)]
                    propensity, reason = 1.0, "asked first; its answer is read before another is paid for"
            record = DecisionRecord(
                id=query.id, request_id=one.request_id, time=now, endpoint=one.endpoint, requested=one.requested,
                policy=policy.name, selected=ranked[0].id, propensity=propensity,
                because=reason, candidates=row, weights=weights,
                router=self.router_name, artefact=self.artefact, features=self.featuriser.name,
                embedding=None if self.store == "nothing" else told.stored,
                prompt=query.text if self.store == "prompts" else None, needs=sorted(query.needs),
                prompt_tokens=query.num_tokens, session=one.session, tenant=one.tenant, dry_run=one.dry_run,
                guards=one.verdict.flags,
            )  # fmt: skip
            choices.append(Choice(ranked, record, policy, told.thread, query, judge))
        return choices

    def constraints(self, lead: Asked, queries: Sequence[Query]) -> list[Constraint]:
        """Whatever may rule a candidate out for requests of one kind. lead: one of them."""
        found = [*lead.verdict.constraints, *lead.policy.constraints]
        if any(query.needs for query in queries):
            found.append(offers_needs)
        if any((query.num_tokens or 0) + (query.max_output or 0) > self.smallest_context for query in queries):
            found.append(fits_context)
        if (self.down or self.missing) and (out := self.out_of_service()):
            found.append(healthy(out))
        return found

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

    def out_of_service(self) -> frozenset[str]:
        """Candidates that are down, and those that failed lately; each of these is tried again once its time is up."""
        now = time.monotonic()
        for candidate_id in [c for c, until in self.down.items() if until <= now]:
            del self.down[candidate_id]
        return self.missing.union(self.down)

    def rest_s(self) -> float | None:
        """Seconds until the first of those that failed lately is tried again, at least 1; None: nobody rests."""
        return max(1.0, min(self.down.values()) - time.monotonic()) if self.down else None
