"""A language model says where: the prompt it is given, the strict reading of its reply, and what a name is worth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, ReplyError
from polyroute.protocols import Router
from polyroute.routers.rows import nothing, observed
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

OUT_OF_SCOPE = "out_of_scope"
REASON = re.compile(r"<reason>(.*?)</reason>", re.DOTALL | re.IGNORECASE)
LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])?\s*")
CHARACTERS = 4000  # of a query that are shown to the model: about 1,000 tokens
PROMPT = """Decide which of the agents below should answer the request. First write why inside <reason> and </reason>,
then the ids of at most {most} agents, one a line and nothing else; one is best where one is enough. If none fits,
write {out_of_scope}.
<agents>
{agents}
</agents>
<request>
{request}
</request>
"""


class Said(NamedTuple):
    """What a language model said about where a query should go."""

    ids: tuple[str, ...]  # best first; empty: it says the query is out of scope
    reason: str = ""


def write_prompt(
    query: Query, pool: Sequence[Candidate], descriptions: Mapping[str, str], *, most: int = 3, prompt: str = PROMPT
) -> str:
    """The request to a language model: candidates with their descriptions, the query cut to a cap, the rules."""
    agents = "\n".join(f'<agent id="{c.id}">{escaped(descriptions.get(c.id, c.kind))}</agent>' for c in pool)
    text = escaped(query.text if len(query.text) <= CHARACTERS else query.text[:CHARACTERS] + " ...")
    return prompt.format(agents=agents, request=text, most=most, out_of_scope=OUT_OF_SCOPE)


def escaped(text: str) -> str:
    """Text that cannot close a tag of the prompt."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def parse_agent_ids(text: str, valid: Sequence[str], *, most: int = 3) -> Said:
    """The ids a reply names, one a line after its reason, repeats dropped.

    A bullet, a number or a pair of quotes around an id is forgiven; anything else is not: an id that is not valid,
    more than `most`, words beside an id, an id together with out_of_scope, or no line at all.
    Raises: ReplyError naming the rule. Source: TCAndon-Router (Tencent/TCAndon-Router); it does not check the ids.
    """
    expected = f"<reason>..</reason> and 1 to {most} ids of {', '.join(valid[:8])}, one a line, or {OUT_OF_SCOPE}"
    reason = REASON.search(text)
    rest = REASON.sub("\n", text, count=1)
    if re.search(r"</?reason>", rest, re.IGNORECASE):
        raise ReplyError("the reason is not closed, or there are two", text, expected=expected)
    lines = [LIST_MARK.sub("", line).strip().strip("`\"'").strip() for line in rest.splitlines()]
    ids = list(dict.fromkeys(line for line in lines if line))
    if not ids:
        raise ReplyError("it names nobody", text, expected=expected)
    told = " ".join(reason[1].split()) if reason else ""
    if ids == [OUT_OF_SCOPE]:
        return Said((), told)
    if unknown := [one for one in ids if one not in valid]:
        raise ReplyError(f"{unknown[0][:60]!r} is not an id of the list", text, expected=expected)
    if len(ids) > most:
        raise ReplyError(f"{len(ids)} ids", text, expected=expected)
    return Said(tuple(ids), told)


class Prompted:
    """Ask a language model which candidate to take, and estimate what its word is worth.

    ask: prompt -> reply; the caller binds model, server and time limit. descriptions: candidate id -> what it is for;
    a new candidate is added by a description. `fit` learns, over all candidates alike, the mean quality of outcomes
    that the model named and of those it did not, each shrunk by `kappa` outcomes towards `named` and `unnamed`;
    unfitted these two stand. So a model whose word is worth nothing yields equal estimates, which choose nobody.
    A reply that cannot be read goes to `fallback` (a fitted router; its estimates are taken as they are), and
    without one is a ReplyError. What was said is kept in `said_` for the last queries, None for garbage. One call a
    query: slow, so put candidates through `retrieve` first where the list is long. It cannot be saved: `ask` is live.
    """

    def __init__(
        self,
        ask: Callable[[str], str],
        descriptions: Mapping[str, str],
        *,
        fallback: Router | None = None,
        most: int = 3,
        named: float = 0.7,
        unnamed: float = 0.4,
        kappa: float = 20.0,
        metric: str = "quality",
        prompt: str = PROMPT,
        retrieve: Callable[[Query, Sequence[Candidate]], Sequence[Candidate]] | None = None,
    ):
        if most < 1:
            raise ConfigError("most", got=most, expected="1 or more")
        if not kappa > 0:
            raise ConfigError("kappa", got=kappa, expected="a number of pseudo-observations above 0")
        self.ask, self.descriptions, self.fallback, self.most = ask, dict(descriptions), fallback, most
        self.kappa, self.metric, self.prompt, self.retrieve = kappa, metric, prompt, retrieve
        self.worth_ = np.array([unnamed, named])  # mean of the metric by named or not
        self.doubt_ = np.sqrt(self.worth_ * (1 - self.worth_) / kappa)
        self.start_ = self.worth_.copy()
        self.said_: list[Said | None] = []

    def fit(self, outcomes: Outcomes) -> Self:
        """Ask about every query of the table and learn what its word was worth. The fallback is fitted as well."""
        y, seen = observed(outcomes, self.metric)
        self.said_ = self.listen(outcomes.queries, outcomes.pool)
        marks = marks_of(self.said_, outcomes.pool)
        readable = np.array([said is not None for said in self.said_])[:, None] & seen
        for k in (0, 1):
            rows = y[readable & (marks == k)]
            self.worth_[k] = (rows.sum() + self.kappa * self.start_[k]) / (len(rows) + self.kappa)
            spread = np.square(rows - self.worth_[k]).sum() + self.kappa * 0.25
            self.doubt_[k] = np.sqrt(spread / (len(rows) + self.kappa) / (len(rows) + self.kappa))
        if self.fallback is not None:
            self.fallback.fit(outcomes)
        return self

    def listen(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> list[Said | None]:
        """What the model says about each query; None for garbage. Raises: ReplyError for it without a fallback."""
        said: list[Said | None] = []
        for query in queries:
            shown = pool if self.retrieve is None else self.retrieve(query, pool)
            reply = self.ask(write_prompt(query, shown, self.descriptions, most=self.most, prompt=self.prompt))
            try:
                said.append(parse_agent_ids(reply, [c.id for c in shown], most=self.most))
            except ReplyError:
                if self.fallback is None:
                    raise
                said.append(None)
        return said

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        """The metric [n, m]: what a named or an unnamed candidate is worth, or the fallback's estimate."""
        if not queries or not pool:
            return nothing(self.metric, len(queries), len(pool))
        self.said_ = self.listen(queries, pool)
        marks = marks_of(self.said_, pool)
        mean, std = self.worth_[marks], self.doubt_[marks]
        if garbled := [i for i, said in enumerate(self.said_) if said is None]:
            assert self.fallback is not None
            spare = self.fallback.predict([queries[i] for i in garbled], pool)
            if self.metric not in spare:
                raise NotFittedError(self.fallback)
            mean[garbled] = spare[self.metric].mean
            std[garbled] = 0.0 if spare[self.metric].std is None else spare[self.metric].std
        return {self.metric: Estimate(mean, std)}


def marks_of(said: Sequence[Said | None], pool: Sequence[Candidate]) -> Array:
    """[n, m] int: 1 where the candidate was named, 0 where not or where the reply was garbage."""
    return np.array([[int(one is not None and c.id in one.ids) for c in pool] for one in said], dtype=np.intp)
