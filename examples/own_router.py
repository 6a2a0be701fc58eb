"""A router of your own: two methods, no base class, and it is held against the same baselines as every other.

python examples/own_router.py
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from polyroute import Candidate, Estimate, Estimates, Outcomes, Query
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.offline.baselines import single_models
from polyroute.offline.compare import compare, resamples_of
from polyroute.offline.frontier import TRADE_OFFS, choose, realised, reference_cost
from polyroute.offline.split import part


class Keywords:
    """Quality of each candidate on past queries that share a word with this one, shrunk to its overall mean."""

    def fit(self, outcomes: Outcomes) -> Self:
        known = np.where(outcomes.observed, outcomes.values["quality"], np.nan)
        self.ids_ = [candidate.id for candidate in outcomes.pool]
        self.overall_ = np.nanmean(known, axis=0)  # [m]
        rows: dict[str, list[int]] = {}
        for i, query in enumerate(outcomes.queries):
            for word in set(query.text.split()):
                rows.setdefault(word, []).append(i)
        self.words_ = {word: (np.nanmean(known[at], axis=0), len(at)) for word, at in rows.items()}
        return self

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        column = [self.ids_.index(candidate.id) for candidate in pool]
        mean = np.array([self._one(query)[column] for query in queries]).reshape(len(queries), len(pool))
        return {"quality": Estimate(mean)}

    def _one(self, query: Query) -> np.ndarray:
        total, weight = 5.0 * self.overall_, 5.0
        for mean, count in (self.words_[word] for word in query.text.split() if word in self.words_):
            total, weight = total + count * mean, weight + count
        return total / weight


def main() -> int:
    table = synthetic_outcomes(2_000, 4, rng=np.random.default_rng(0)).outcomes
    train, test = part(table, "train"), part(table, "test")
    quality = Keywords().fit(train).predict(test.queries, test.pool)["quality"].mean
    cost = np.tile(train.values["cost"].mean(axis=0), (len(test), 1))  # USD
    own = realised("keywords", choose(quality, cost, TRADE_OFFS, reference_cost(train)), test)
    counts = resamples_of(test, np.random.default_rng(1))
    row, mix = compare([own, single_models(test)], test, counts, against=["random mix"])
    gain = row.difference["random mix"]
    print(f"AIQ {row.summary.aiq:.3f} against {mix.summary.aiq:.3f} of a random mix of single models at equal cost")
    print(f"difference {gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    return 0 if gain.low > 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
