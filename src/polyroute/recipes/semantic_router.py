"""System 34, vLLM Semantic Router: signals -> rules in three-valued logic -> a way to choose -> plugins.

Signals read a request, each on its own; rules turn them into candidates, guards first; one of several ways chooses
among these; the session guard keeps a conversation where it is unless a move pays; plugins change the request in a
named order. `lint` looks at the rules beforehand. Where a domain's reading is in doubt, `rules_in_doubt` leaves the
choice to `ByDomain`, which weighs what the models are worth in each domain by how sure the reading is.
Parts: signals/matches, policies/rules, policies/lint, policies/session, policies/multifactor, routers/knn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from polyroute.decide import decide
from polyroute.errors import NoCandidateError, UnknownNameError
from polyroute.policies.lint import Report, lint
from polyroute.policies.rules import Any, Is, Reading, Readings, Rule, Rules, Ruling
from polyroute.policies.session import Session, StickyConfig, keep_or_switch
from polyroute.protocols import Policy, Router
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Array, Candidate, Decision, Estimate, Estimates, Objective, Outcomes, Query

Signal = Callable[[Query], Reading]
Plugin = Callable[[Query], Query]


class Way(NamedTuple):
    """How to choose among several candidates."""

    router: Router
    policy: Policy
    objective: Objective


class Routed(NamedTuple):
    """A decision, what the rules said, and the request as the plugins left it."""

    decision: Decision
    ruling: Ruling
    query: Query


class SemanticRouter:
    """Signals and rules over a pool.

    signals: name -> signal. classifiers: give several readings at once, as the domains of one classifier.
    ways: name -> Way, for rules whose `choose` is not "first"; plugins: name -> Plugin.
    Raises: UnknownNameError for a way, a plugin or a candidate that a rule names and nobody has.
    """

    def __init__(
        self, rules: Rules, pool: Sequence[Candidate], signals: Mapping[str, Signal],
        classifiers: Sequence[Callable[[Query], Readings]] = (), ways: Mapping[str, Way] | None = None,
        plugins: Mapping[str, Plugin] | None = None, session: StickyConfig = StickyConfig(),
    ):  # fmt: skip
        self.rules, self.pool, self.signals, self.classifiers = rules, {c.id: c for c in pool}, signals, classifiers
        self.ways, self.plugins, self.session = dict(ways or {}), dict(plugins or {}), session
        for rule in rules.rules:
            for what, names, known in (
                ("candidate", rule.candidates, self.pool),
                ("plugin", rule.plugins, self.plugins),
                ("way to choose", (rule.choose,), {"first": None, **self.ways}),
            ):
                for name in names:
                    if name not in known:
                        raise UnknownNameError(what, name, known)

    def read(self, query: Query) -> dict[str, Reading]:
        """Every signal that a rule mentions; a signal that fails is not known, which is not the same as no match."""
        readings: dict[str, Reading] = {}
        wanted = self.rules.signals
        for classify in self.classifiers:
            readings |= {name: reading for name, reading in classify(query).items() if name in wanted}
        for name in wanted & self.signals.keys():
            try:
                readings[name] = self.signals[name](query)
            except (ValueError, LookupError, OSError):
                readings[name] = (None, 0.5)
        return readings

    def route(
        self, query: Query, session: Session | None = None, *, now_s: float = 0.0, warmth: float = 1.0,
        in_tool_loop: bool = False,
    ) -> Routed:  # fmt: skip
        """Decide one request. Raises: NoCandidateError naming the guards that leave nobody."""
        ruling = self.rules.rule_on(self.read(query))
        if not ruling.candidates:
            by = " and ".join(ruling.guards) or "no rule applies and there is no default"
            raise NoCandidateError(query.id, dict.fromkeys(self.pool, by))
        pool = [self.pool[name] for name in ruling.candidates]
        chosen = self.choose(query, pool, ruling, session, now_s, warmth, in_tool_loop)
        because = f"rule {ruling.rule or 'default'}" + (f", guards {', '.join(ruling.guards)}" if ruling.guards else "")
        for name in ruling.plugins:
            query = self.plugins[name](query)
        return Routed(Decision(query.id, (chosen,), because=because), ruling, query)

    def choose(
        self, query: Query, pool: Sequence[Candidate], ruling: Ruling, session: Session | None, now_s: float,
        warmth: float, in_tool_loop: bool,
    ) -> str:  # fmt: skip
        """One of the candidates, by the ruling's way; with a session, the current one unless a move pays."""
        if ruling.choose == "first":
            stays = session is not None and in_tool_loop and session.current in ruling.candidates
            return session.current if stays and session is not None else pool[0].id
        way = self.ways[ruling.choose]
        if session is None:
            return decide([query], pool, way.router, way.policy, way.objective)[0].candidate_ids[0]
        utility = way.objective.utility(way.router.predict([query], pool))[0]
        ids = [candidate.id for candidate in pool]
        kept = keep_or_switch(
            ids, utility, session, now_s=now_s, warmth=warmth, in_tool_loop=in_tool_loop, config=self.session
        )
        return ids[kept.column]

    def lint(self, exclusive: Sequence[Collection[str]] = (), domains: Collection[str] = ()) -> Report:
        """Everything worth a look. domains: names that the classifiers give."""
        return lint(self.rules, signals=[*self.signals, *domains], candidates=self.pool, exclusive=exclusive)


class Domains:
    """A classifier from labelled queries: the domain of most of the k nearest. Readings are named `prefix` + domain."""

    def __init__(self, queries: Sequence[Query], domains: Sequence[str], k: int = 15, prefix: str = "domain:"):
        self.x, self.k, self.prefix = unit_rows(embeddings(queries)), k, prefix
        self.names, self.own = np.unique(np.asarray(domains, dtype=str), return_inverse=True)

    def __call__(self, query: Query) -> Readings:
        if query.embedding is None:
            return {}  # not known
        share = self.shares([query])[0]
        best = int(share.argmax())
        return {f"{self.prefix}{name}": (i == best, float(share[i])) for i, name in enumerate(self.names)}

    def shares(self, queries: Sequence[Query]) -> Array:
        """[n, domains] share of the k nearest in each domain."""
        alike = unit_rows(embeddings(queries, self.x.shape[1])) @ self.x.T
        k = min(self.k, alike.shape[1])
        near = self.own[np.argpartition(-alike, k - 1, axis=1)[:, :k]]  # [n, k]
        return np.asarray((near[:, :, None] == np.arange(len(self.names))).mean(axis=1))


class ByDomain:
    """Quality as the mean over domains of each model's shrunk quality in it, weighed by how sure the reading is.

    The model with the highest is the best choice when the domain is known by these chances only, which the best model
    of the likeliest domain is not: where two domains are as likely, it may be one that is good in both.
    kappa: queries by which a domain's mean is shrunk to the overall mean, as in `best_of`.
    """

    def __init__(self, domains: Domains, kappa: float = 20.0):
        self.domains, self.kappa = domains, kappa

    def fit(self, outcomes: Outcomes) -> Self:
        """outcomes: of the queries the domains are labelled on, in their order."""
        quality = outcomes.values["quality"]
        self.ids_ = [candidate.id for candidate in outcomes.pool]
        self.mean_ = np.stack([
            shrunk_mean(quality, self.domains.own == d, self.kappa) for d in range(len(self.domains.names))
        ])  # [domains, m]  # fmt: skip
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        columns = [self.ids_.index(candidate.id) for candidate in pool]
        return {"quality": Estimate(self.domains.shares(queries) @ self.mean_[:, columns])}


def shrunk_mean(quality: Array, rows: Array, kappa: float) -> Array:
    """[m] mean quality over some rows, shrunk to that over all by kappa queries. quality: [n, m], NaN not observed."""
    own, overall = quality[rows], np.nanmean(quality, axis=0)
    mean: Array = (np.nansum(own, axis=0) + kappa * overall) / (np.isfinite(own).sum(axis=0) + kappa)
    return mean


def best_of(outcomes: Outcomes, domains: Array, kappa: float = 20.0) -> dict[str, tuple[str, ...]]:
    """Domain -> candidate ids, best first, by mean quality in it shrunk to the overall mean by kappa queries."""
    quality = outcomes.values["quality"]
    found = {}
    for domain in np.unique(domains):
        mean = shrunk_mean(quality, domains == domain, kappa)
        found[str(domain)] = tuple(outcomes.pool[j].id for j in np.argsort(-mean, kind="stable"))
    return found


def rules_of(best: Mapping[str, Sequence[str]], default: Sequence[str], prefix: str = "domain:") -> Rules:
    """One rule a domain: its signal, then its best candidate."""
    rules = [Rule(name=name, when=Is(f"{prefix}{name}"), candidates=(ids[0],)) for name, ids in best.items()]
    return Rules(tuple(rules), tuple(default))


def rules_in_doubt(
    domains: Domains, candidates: Sequence[str], default: Sequence[str], way: str = "by domain"
) -> Rules:
    """One rule: where any domain is read, all candidates, chosen among by `way` (a `Way` with `ByDomain`)."""
    when = Any(tuple(Is(f"{domains.prefix}{name}") for name in domains.names))
    return Rules((Rule(name="domains", when=when, candidates=tuple(candidates), choose=way),), tuple(default))
