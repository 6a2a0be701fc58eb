"""Keep mean spend at a limit: a price on cost that follows what is really spent.

python examples/budget.py
"""

import numpy as np

from polyroute import Budget, BudgetConfig, Greedy, Objective
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.decide import decide
from polyroute.offline.split import part
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Together


def main() -> int:
    rng = np.random.default_rng(0)
    table = synthetic_outcomes(2_000, 4, rng=rng).outcomes
    train, served = part(table, "train"), part(table, "valid")
    router = Together([KNN(), Linear("cost", tokens="linear")]).fit(train)
    names = [candidate.id for candidate in served.pool]
    dearest = float(served.values["cost"].mean(axis=0).max())
    objective = Objective({"quality": 1.0, "cost": 0.0})  # nothing but quality: the budget alone holds back

    print(f"{'limit':>12} {'spent':>12} {'quality':>8} {'price':>10}   (USD per request; utility per USD)")
    for share in (0.5, 0.15, 0.1, 0.05):
        limit = share * dearest
        budget = Budget(BudgetConfig(limit=limit, window=200), Greedy())
        quality, usd = [], []
        for i, query in enumerate(served.queries):
            (decision,) = decide([query], served.pool, router, budget, objective, rng=rng)
            j = names.index(decision.candidate_ids[0])
            usd.append(float(served.values["cost"][i, j]))
            quality.append(served.values["quality"][i, j])
            budget.spent(usd[-1])  # what it did cost, not what was expected
        print(f"{limit:>12.6f} {np.mean(usd):>12.6f} {np.mean(quality):>8.3f} {budget.price:>10.1f}")
        if np.mean(usd) > 1.1 * limit:
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
