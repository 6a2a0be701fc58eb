"""Ask several, take the answer with most weight behind it: for one query as a flow, for a table as arrays.

A vote pays for everyone asked. With `early` a flow stops asking as soon as the rest can no longer change the result,
so "two cheap ones agree, else the dear one decides" is a vote with weights 1, 1 and 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, NoCandidateError, ShapeError
from polyroute.flows.cascade import together
from polyroute.protocols import Flow
from polyroute.types import Array, Candidate, Decision, Outcome, Query

FINEST = 1e-3  # accuracies are taken as no nearer to 0 and 1 than this


class Tally(NamedTuple):
    """What a vote came to."""

    answer: Hashable | None  # None: everyone abstained
    member: int  # the first of those of greatest weight who gave it; -1: everyone abstained
    share: float  # of the weight of those who answered, 0..1
    lead: float  # weight ahead of the next answer
    weight: dict[Hashable, float]  # answer -> weight behind it, in the order given


def tally(
    answers: Sequence[Hashable | None],
    weights: Sequence[float] | None = None,
    confidence: Sequence[float] | None = None,
) -> Tally:
    """The answer with most weight; ties go to the one given with most confidence, then to the first given.

    answers: [k] by the members, brought to a form in which equal ones are equal; None abstains. weights: [k], None: 1
    each; one below 0 speaks against its answer. confidence: [k], for ties only.
    """
    weight = checked("weights", weights, len(answers), 1.0)
    sure = checked("confidence", confidence, len(answers), 0.0)
    behind: dict[Hashable, float] = {}
    surest: dict[Hashable, float] = {}
    for answer, w, c in zip(answers, weight, sure, strict=True):
        if answer is not None:
            behind[answer] = behind.get(answer, 0.0) + w
            surest[answer] = max(surest.get(answer, -np.inf), c)
    if not behind:
        return Tally(None, -1, 0.0, 0.0, {})
    won = max(behind, key=lambda answer: (behind[answer], surest[answer]))
    member = max((j for j, answer in enumerate(answers) if answer == won), key=lambda j: weight[j])
    others = [w for answer, w in behind.items() if answer != won]
    total = sum(abs(w) for w in behind.values())
    share = behind[won] / total if total else 0.0
    return Tally(won, member, share, behind[won] - max(others, default=0.0), behind)


def checked(name: str, values: Sequence[float] | None, count: int, otherwise: float) -> list[float]:
    """One finite number a member. Raises: ShapeError, ConfigError."""
    numbers = [otherwise] * count if values is None else [float(v) for v in values]
    if len(numbers) != count:
        raise ShapeError(name, got=(len(numbers),), expected=(count,))
    if not np.isfinite(numbers).all():
        raise ConfigError(name, got=numbers, expected="finite numbers")
    return numbers


def vote(
    query: Query,
    members: Sequence[Candidate],
    answer: Callable[[Outcome], Hashable | None],
    weights: Sequence[float] | None = None,
    *,
    confidence: Callable[[Outcome], float] | None = None,
    early: bool = False,
) -> Flow:
    """Ask the members in order and merge what they say by `tally`.

    answer: reads the answer off an outcome, in a form in which equal ones are equal; None: no answer. early: stop when
    those not asked yet cannot change the result (weights of 0 or more only).
    Returns the outcome of the member that stands for the winning answer, its decision naming that member, with cost,
    latency and tokens of everyone asked together. If everyone abstains: the last outcome.
    Raises: NoCandidateError without members.
    """
    if not members:
        raise NoCandidateError(query.id, {})
    weight = checked("weights", weights, len(members), 1.0)
    if early and min(weight) < 0:
        raise ConfigError("weights", got=weight, expected="0 or more, to stop early")
    said: list[Hashable | None] = []
    sure: list[float] = []
    asked: list[Outcome] = []
    for j, member in enumerate(members):
        outcome = yield Decision(query.id, (member.id,), because=f"vote {j + 1} of {len(members)}")
        asked.append(outcome)
        said.append(answer(outcome))
        sure.append(0.0 if confidence is None else confidence(outcome))
        if early and tally(said, weight[: j + 1]).lead > sum(weight[j + 1 :]):
            break
    result = tally(said, weight[: len(said)], sure)
    standing = asked[result.member]
    because = f"{result.share:.2f} of the weight of {len(asked)} asked"
    sums = together([*asked[: result.member], *asked[result.member + 1 :], standing] if result.member >= 0 else asked)
    decision = Decision(query.id, standing.decision.candidate_ids, standing.decision.propensity, because)
    return Outcome(decision, sums.metrics)


def winners(codes: Array, weights: Array) -> Array:
    """The member that stands for the winning answer of each row, [n] int; -1 where everyone abstains.

    codes: [n, k] int, equal where answers are equal; below 0 abstains. weights: [k] or [n, k]. As `tally` without
    confidences: ties to the answer given first, and the heaviest of its members stands for it.
    """
    codes = np.asarray(codes)
    try:
        weight = np.broadcast_to(np.asarray(weights, dtype=float), codes.shape)
    except ValueError:
        raise ShapeError("weights", got=np.shape(weights), expected=codes.shape) from None
    gave = codes >= 0
    same = (codes[:, :, None] == codes[:, None, :]) & gave[:, :, None] & gave[:, None, :]  # [n, k, k]
    behind = np.where(gave, (same * weight[:, None, :]).sum(axis=2), -np.inf)
    first = behind.argmax(axis=1)  # the first who gave the answer with most weight
    agree = np.take_along_axis(same, first[:, None, None], axis=1)[:, 0]
    member = np.where(agree, weight, -np.inf).argmax(axis=1)
    return np.where(gave.any(axis=1), member, -1)


def log_odds(accuracy: Array, choices: Array | float = 2) -> Array:
    """The weight of an independent voter that is right this often among so many choices; the same shape as accuracy.

    log(p / (1 - p)) + log(choices - 1): 0 for one that guesses. Taken as no nearer to 0 and 1 than `FINEST`.
    Source: Nitzan and Paroush 1982 for the log odds; the second term makes guessing weigh nothing.
    """
    p = np.clip(np.asarray(accuracy, dtype=float), FINEST, 1 - FINEST)
    return np.log(p / (1 - p)) + np.log(np.maximum(np.asarray(choices, dtype=float), 2.0) - 1.0)
