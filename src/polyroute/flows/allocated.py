"""A problem in steps, each done by the candidate it was allocated to; a doubtful step is done again by a strong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyroute.errors import ShapeError
from polyroute.flows.cascade import together
from polyroute.protocols import Flow
from polyroute.types import Candidate, Decision, Outcome, Query

PROMPT = "Problem: {problem}\n{done}Now do only this step and state its result in one short line: {step}"
LAST = "Problem: {problem}\n{done}Now do this last step and end with the answer to the problem: {step}"


def allocated(
    query: Query,
    steps: Sequence[str],
    allocation: Sequence[Candidate],
    *,
    review: Callable[[str, Outcome], float] | None = None,
    threshold: float = 0.5,
    strong: Candidate | None = None,
) -> Flow:
    """Do the steps in order; each decision's prompt holds the problem and all results so far.

    review: (step, outcome) -> how likely the step is right, 0..1; below `threshold` the step is done again by
    `strong`, whose result stands. Returns the last step's outcome with cost, latency and tokens of all calls, so the
    text sent again with each step is paid for, and `redone`, the number of steps done twice.
    Raises: ShapeError where steps and allocation do not match or there are none.
    Source: R2-Reasoner (arXiv:2506.05901).
    """
    if not steps or len(steps) != len(allocation):
        raise ShapeError("allocation", got=(len(allocation),), expected=(max(len(steps), 1),))
    called: list[Outcome] = []
    results: list[str] = []
    redone = 0
    for k, (step, candidate) in enumerate(zip(steps, allocation, strict=True)):
        done = "".join(f"Step {i + 1}: {text}\n" for i, text in enumerate(results))
        form = LAST if k + 1 == len(steps) else PROMPT
        prompt = form.format(problem=query.text, done=done, step=step)
        because = f"step {k + 1} of {len(steps)}"
        outcome = yield Decision(query.id, (candidate.id,), because=because, prompt=prompt)
        called.append(outcome)
        if (
            review is not None
            and strong is not None
            and candidate.id != strong.id
            and review(step, outcome) < threshold
        ):
            redone += 1
            outcome = yield Decision(query.id, (strong.id,), because=f"{because}, done again", prompt=prompt)
            called.append(outcome)
        results.append(" ".join(outcome.text.split()))
    last = together(called)
    return Outcome(last.decision, {**last.metrics, "redone": float(redone)}, last.text)
