"""Several decisions for one query: try the cheap model, check, escalate. The same flow replayed, live and async.

python examples/cascade.py
"""

import asyncio

import numpy as np

from polyroute import Decision, Outcome, Query
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.flows.cascade import arun, cascade, recorded, run


def good_enough(outcome: Outcome) -> bool:
    """The check after an answer. Here it knows the truth; yours is a test suite, a parser, a judge."""
    return outcome.metrics["quality"] >= 0.5


def main() -> int:
    table = synthetic_outcomes(1_000, 4, rng=np.random.default_rng(0)).outcomes
    ladder = [table.pool[0], table.pool[-1]]  # cheapest first
    backend = recorded(table)

    results = [run(cascade(query, ladder, good_enough), backend) for query in table.queries]
    quality = np.mean([result.metrics["quality"] for result in results])
    cost = np.mean([result.metrics["cost"] for result in results])  # every rung that was tried is paid
    escalated = np.mean([result.decision.candidate_ids[0] == ladder[-1].id for result in results])
    print(f"{'cascade':<14} quality {quality:.3f}  cost {1e3 * cost:.5f} USD per 1,000, {escalated:.0%} escalated")
    for j in (0, len(table.pool) - 1):
        means = table.values["quality"][:, j].mean(), 1e3 * table.values["cost"][:, j].mean()
        print("{:<14} quality {:.3f}  cost {:.5f} USD per 1,000".format(f"only {table.pool[j].id}", *means))

    async def ask(decision: Decision) -> Outcome:
        """A live backend would call decision.candidate_ids[0] here."""
        await asyncio.sleep(0)
        return Outcome(decision, {"quality": float(decision.candidate_ids[0] == ladder[-1].id), "cost": 0.001})

    answer = asyncio.run(arun(cascade(Query("live"), ladder, good_enough), ask))
    print(f"live: {answer.decision.candidate_ids[0]} answered, {answer.decision.because}, {answer.metrics}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
