"""Ask several candidates the same and have one more merge what they say, disagreements included."""

from __future__ import annotations

from collections.abc import Sequence

from polyroute.errors import NoCandidateError
from polyroute.flows.cascade import together
from polyroute.protocols import Flow
from polyroute.types import Candidate, Decision, Outcome, Query

PROMPT = """Several agents answered the request below. Write one answer. Where they contradict each other, say so and
say which you follow.
Request: {request}
{answers}"""


def refine(query: Query, agents: Sequence[Candidate], refiner: Candidate) -> Flow:
    """Decisions for each agent in turn, then one for `refiner` with all answers; a single agent's answer stands.

    The agents' decisions do not depend on each other. Returns the last outcome with cost, latency and tokens of all,
    and `asked`. Raises: NoCandidateError for no agents: out of scope is for the caller to handle.
    Source: the refining agent of TCAndon-Router.
    """
    if not agents:
        raise NoCandidateError(query.id, {})
    told: list[Outcome] = []
    for k, agent in enumerate(agents):
        told.append((yield Decision(query.id, (agent.id,), because=f"agent {k + 1} of {len(agents)}")))
    if len(agents) > 1:
        answers = "\n".join(f"{a.id}: {o.text.strip()}" for a, o in zip(agents, told, strict=True))
        prompt = PROMPT.format(request=query.text, answers=answers)
        told.append((yield Decision(query.id, (refiner.id,), because="refines", prompt=prompt)))
    last = together(told)
    return Outcome(last.decision, {**last.metrics, "asked": float(len(agents))}, last.text)
