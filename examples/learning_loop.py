"""The learning loop without a server: decide, write the journal, hear of quality later, fit, decide better.

python examples/learning_loop.py
"""

import tempfile
from pathlib import Path

import numpy as np

from polyroute import Epsilon, Greedy, Objective, Outcomes, Policy, Router
from polyroute.artefact import load, save
from polyroute.data.from_journal import load_journal
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.decide import weigh
from polyroute.gateway.journal import Journal
from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN


def serve(router: Router, policy: Policy, table: Outcomes, journal: Journal | None = None) -> float:
    """Mean quality of what was chosen; every decision goes to the journal before its outcome is known."""
    rng = np.random.default_rng(0)
    decisions = weigh(table.queries, table.pool, router, policy, Objective({"quality": 1.0}), rng=rng).decisions
    column = [[candidate.id for candidate in table.pool].index(d.candidate_ids[0]) for d in decisions]
    quality = table.values["quality"][np.arange(len(table)), column]
    for i, decision in enumerate(decisions if journal else ()):
        name, vector = decision.candidate_ids[0], table.queries[i].embedding.astype(np.float16)
        journal.decision(DecisionRecord(
            id=decision.query_id, request_id=decision.query_id, time=float(i), endpoint="example", requested="auto",
            policy="auto", selected=name, propensity=decision.propensity, because=decision.because,
            features="synthetic", embedding=vector.tobytes(),
        ))  # fmt: skip
        own = {"decision_id": decision.query_id, "time": i + 0.5}
        journal.outcome(OutcomeRecord(**own, status=200, state="ok", selected=name))
        journal.feedback(FeedbackRecord(**own, metrics={"quality": float(quality[i])}))
    return float(quality.mean())


def main() -> int:
    table = synthetic_outcomes(3_000, 4, rng=np.random.default_rng(0)).outcomes
    before, after = table.take(np.arange(1_500)), table.take(np.arange(1_500, 3_000))
    ignorant = Constant("quality", 0.5, 0.3)  # every model alike: the first is taken, one in five is drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        journal = Journal(path)
        print(f"first 1,500 requests, nothing known: quality {serve(ignorant, Epsilon(0.2), before, journal):.3f}")
        journal.close()
        log = load_journal(path)
        print(f"journal: {len(log)} decisions, each with its propensity, {np.unique(log.propensity.round(3))}")
        save(KNN(prior=ignorant).fit(log), Path(folder) / "router.npz", features="synthetic", pool=log.pool)
        router = load(Path(folder) / "router.npz").router
        print(f"next 1,500 requests, fitted on that:  quality {serve(router, Greedy(), after):.3f}")
        print(f"next 1,500 requests, still ignorant:  quality {serve(ignorant, Greedy(), after):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
