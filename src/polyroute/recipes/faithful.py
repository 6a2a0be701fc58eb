"""System 53, Fast and Faithful: check a generated answer against its sources, as deep as the time allows, then act.

Parts: signals/grounding (sentences against source windows, depth policy), flows/cascade (`verified`: an answer that is
not grounded is asked again of a stronger model). The paper's verifier is a long-context encoder with early exits; here
the depth is how much of the sources a lexical verifier reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyroute.errors import ConfigError
from polyroute.flows.cascade import Judgement, verified
from polyroute.protocols import Flow
from polyroute.signals.grounding import Depth, GroundingVerifier, Span, choose_depth
from polyroute.types import Candidate, Outcome, Query

CHARACTERS_PER_TOKEN = 4
ON_FAIL = ("escalate", "annotate", "block")
BLOCKED = "The answer was withheld: it is not supported by the sources."


def grounded(
    query: Query,
    ladder: Sequence[Candidate],
    sources: Sequence[str],
    verifier: GroundingVerifier | None = None,
    least: float = 1.0,
) -> Flow:
    """Ask up the ladder until an answer is grounded; otherwise keep the best grounded one. All tries are paid.

    least: share of an answer's sentences that must be supported.
    """
    checker = verifier or GroundingVerifier()

    def judge(asked: Query, tried: Sequence[Outcome]) -> Judgement:
        if not tried:
            return Judgement(-1, ladder[0] if ladder else None, "first try")
        shares = [supported_share(checker.check(o.text, sources), checker.threshold) for o in tried]
        keep = max(range(len(shares)), key=shares.__getitem__)
        if shares[keep] >= least or len(tried) == len(ladder):
            return Judgement(keep)
        return Judgement(keep, ladder[len(tried)], f"{shares[-1]:.0%} of the sentences are in the sources")

    return verified(query, judge)


def supported_share(spans: Sequence[Span], threshold: float) -> float:
    """Share of sentences with enough support; an empty answer supports nothing."""
    return sum(span.support >= threshold for span in spans) / len(spans) if spans else 0.0


def settled(answer: str, unsupported: Sequence[Span], on_fail: str) -> str:
    """What is shown to the caller: marked sentences for "annotate", a note for "block", else the answer as it is."""
    if on_fail not in ON_FAIL:
        raise ConfigError("on_fail", got=on_fail, expected=f"one of {', '.join(ON_FAIL)}")
    if not unsupported or on_fail == "escalate":
        return answer
    if on_fail == "block":
        return BLOCKED
    for span in sorted(unsupported, reverse=True):
        answer = answer[: span.end] + " [not in the sources]" + answer[span.end :]
    return answer


def at_depth(
    depths: Sequence[Depth], limits: dict[str, int | None], budget_ms: float
) -> Callable[[int], GroundingVerifier | None]:
    """(source tokens) -> the deepest verifier that the budget allows, or None. limits: depth ->
    tokens read; None: all."""

    def choose(num_tokens: int) -> GroundingVerifier | None:
        depth = choose_depth(depths, num_tokens, budget_ms)
        if depth is None:
            return None
        tokens = limits[depth.name]
        return GroundingVerifier(limit=None if tokens is None else tokens * CHARACTERS_PER_TOKEN)

    return choose
