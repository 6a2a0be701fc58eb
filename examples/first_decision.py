"""One decision from start to end: a table of past outcomes, a router, a choice and the reason for it.

python examples/first_decision.py
"""

import numpy as np

from polyroute import Candidate, Greedy, Objective, Outcomes, Profile, Query
from polyroute.constraints import fits_context
from polyroute.decide import weigh
from polyroute.routers.knn import KNN
from polyroute.routers.mix import Together
from polyroute.routers.price import Price


def main() -> int:
    rng = np.random.default_rng(0)
    pool = [
        Candidate("small", profile=Profile(price_in=0.1, price_out=0.4, context=8_000)),  # USD per 1e6 tokens
        Candidate("large", profile=Profile(price_in=2.5, price_out=10.0, context=128_000)),
    ]
    # 200 past queries. The first number of the embedding says how hard one is; the small model fails on hard ones.
    past = [Query(f"past-{i}", embedding=rng.normal(size=8).astype("float32"), num_tokens=300) for i in range(200)]
    hard = np.array([query.embedding[0] > 0 for query in past])
    quality = np.stack([np.where(hard, 0.2, 0.9), np.full(200, 0.95)], axis=1)  # [200, 2], 0..1
    outcomes = Outcomes(past, pool, {"quality": quality}, observed=np.ones((200, 2), dtype=bool))

    router = Together([KNN(k=20, kappa=5).fit(outcomes), Price()])  # quality from neighbours, cost from list prices
    objective = Objective({"quality": 1.0, "cost": -50.0})  # an answer 0.1 better may cost 0.002 USD more

    easy, difficult = -np.eye(8, dtype="float32")[0], np.eye(8, dtype="float32")[0]
    queries = [
        Query("easy", embedding=easy, num_tokens=300),
        Query("difficult", embedding=difficult, num_tokens=300),
        Query("easy but long", embedding=easy, num_tokens=20_000),
    ]
    weighing = weigh(queries, pool, router, Greedy(), objective, [fits_context])
    for i, decision in enumerate(weighing.decisions):
        print(f"{decision.query_id:<14} -> {decision.candidate_ids[0]:<6} {decision.because}")
        for j, candidate in enumerate(pool):
            expected = weighing.estimates["quality"].mean[i, j], weighing.estimates["cost"].mean[i, j]
            ruled_out = weighing.refused[i].get(candidate.id, "")
            print("    {:<6} quality {:.2f}  cost {:.6f} USD  {}".format(candidate.id, *expected, ruled_out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
