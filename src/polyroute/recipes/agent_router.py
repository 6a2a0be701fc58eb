"""System 4, AgentRouter (arXiv:2510.05445): weights over agents from soft targets, and a vote over what they said.

Agents are models with prompting strategies. Targets share the credit among all that were right; the vote sums each
answer's weights. Before anyone answered the shares choose one agent; after all have, agreement edges between agents
join in. The paper's graph of named entities is left out: the question's embedding stands for it.
Parts: routers/soft_targets, flows/vote, policies/greedy.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ShapeError
from polyroute.flows.vote import winners
from polyroute.routers.soft_targets import SoftTargets
from polyroute.types import Array, Outcomes, Query

LETTER = re.compile(r"(?<![A-Za-z])[A-E](?![A-Za-z])")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def choice_letter(text: str) -> str | None:
    """The option a multiple-choice answer names, A to E; None where it names none."""
    found = LETTER.search(text)
    return found.group() if found else None


def short_answer(text: str) -> str | None:
    """A free answer so that equal ones are equal: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(" " if mark in string.punctuation else mark for mark in text.lower())
    return " ".join(ARTICLES.sub(" ", bare).split()) or None


def coded(answers: Sequence[Sequence[str | None]]) -> Array:
    """[n, m] int: equal in a row where answers are equal, -1 where there is none."""
    rows = [{a: k for k, a in enumerate(dict.fromkeys(a for a in row if a is not None))} for row in answers]
    return np.array([[-1 if a is None else row[a] for a in given] for row, given in zip(rows, answers, strict=True)])


class AgentRouter:
    """Fit on questions with every agent's answer and score; then weigh what the agents said."""

    def __init__(self, **settings: Any):
        self.router = SoftTargets(**settings)

    def fit(self, outcomes: Outcomes, answers: Sequence[Sequence[str | None]]) -> Self:
        """answers: [n][m], brought to a form in which equal ones are equal; None: no answer."""
        self.router.fit(outcomes, coded(answers))
        self.pool_ = list(outcomes.pool)
        return self

    def vote(self, queries: Sequence[Query], answers: Sequence[Sequence[str | None]]) -> list[str | None]:
        """The answer of greatest weight for each question; None where nobody answered. It pays for everyone."""
        if len(answers) != len(queries):
            raise ShapeError("answers", got=(len(answers),), expected=(len(queries),))
        if not queries:
            return []
        codes = coded(answers)
        member = winners(codes, self.router.weights(queries, self.pool_, codes))
        return [given[j] if j >= 0 else None for given, j in zip(answers, member.tolist(), strict=True)]

    def pick(self, queries: Sequence[Query]) -> Array:
        """[n] column of the one agent to ask, before anyone answered."""
        choice: Array = self.router.predict(queries, self.pool_)["share"].mean.argmax(axis=1)
        return choice
