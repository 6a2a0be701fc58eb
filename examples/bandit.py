"""Learn while serving: only the chosen model's answer is seen. One router, four policies.

python examples/bandit.py
"""

import numpy as np

from polyroute import UCB, Epsilon, Greedy, Objective, Outcomes, Policy, Thompson
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.decide import decide
from polyroute.routers.constant import Constant
from polyroute.routers.linear import Linear

BATCH, ROUNDS = 50, 24  # decisions before the router learns again; how often


def serve(policy: Policy, seed: int) -> list[float]:
    """Expected quality of what was chosen, round by round."""
    rng = np.random.default_rng(seed)
    table, success = synthetic_outcomes(BATCH * ROUNDS, 4, rng=np.random.default_rng(100 + seed))
    names = [candidate.id for candidate in table.pool]
    router = Linear("quality", kind="ridge", l2=1.0, rank=None, prior=Constant("quality", 0.5, 0.3))
    earned = []
    for start in range(0, BATCH * ROUNDS, BATCH):
        now = table.take(np.arange(start, start + BATCH))
        if start == 0:  # nothing is known: one batch at random
            column = rng.integers(len(names), size=BATCH)
        else:
            decisions = decide(now.queries, now.pool, router, policy, Objective({"quality": 1.0}), rng=rng)
            column = np.array([names.index(decision.candidate_ids[0]) for decision in decisions])
        earned.append(float(success[start + np.arange(BATCH), column].mean()))
        seen = np.zeros(now.observed.shape, dtype=bool)
        seen[np.arange(BATCH), column] = True
        log = Outcomes(now.queries, now.pool, {"quality": np.where(seen, now.values["quality"], np.nan)}, seen)
        if start == 0:
            router.fit(log)
        else:
            router.update(log)
    return earned


def main() -> int:
    print(f"mean expected quality over 2 seeds of {BATCH * ROUNDS} requests\n{'':<10} first quarter  last quarter")
    policies = {"greedy": Greedy(), "epsilon": Epsilon(0.1), "ucb": UCB(1.0), "thompson": Thompson()}
    for name, policy in policies.items():
        earned = np.array([serve(policy, seed) for seed in range(2)])
        first, last = earned[:, : ROUNDS // 4].mean(), earned[:, -ROUNDS // 4 :].mean()
        print(f"{name:<10} {first:>13.3f} {last:>13.3f}")
    best = [synthetic_outcomes(BATCH * ROUNDS, 4, rng=np.random.default_rng(100 + s)).success for s in range(2)]
    print(f"{'one model':<10} {np.mean([s.mean(axis=0).max() for s in best]):>27.3f}   (the best single one)")
    print(f"{'oracle':<10} {np.mean([s.max(axis=1).mean() for s in best]):>27.3f}   (knows every probability)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
