"""How much of what a model adds to a pool comes with its first few labelled answers.

Each model is left out in turn and joins again, once with all its answers and several times with a few. Letters:
n queries, m candidates, p operating points, r draws of answers, b bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyroute.offline.bootstrap import Interval, interval, weighted_means
from polyroute.offline.compare import resamples_of, scales_of
from polyroute.offline.frontier import TRADE_OFFS, Curve, choose, realised, reference_cost, summarise
from polyroute.protocols import OnlineRouter
from polyroute.routers.rows import embeddings
from polyroute.routers.tasks import classes_of
from polyroute.types import Array, Outcomes, Rng

MEASURES = ("AIQ", "trade-off 0")


class Joining(NamedTuple):
    """One model's return, on the same resamples throughout, so that differences are paired: two measures each."""

    model: str
    without: Array  # [1 + b, 2] of the pool without it
    full: Array  # [1 + b, 2] with all its answers
    few: Array  # [r, 1 + b, 2] with a few of them

    @property
    def clear(self) -> list[bool]:
        """By measure: whether its full answers help beyond noise."""
        return [interval((self.full - self.without)[1:, k]).low > 0 for k in range(len(MEASURES))]


class Share(NamedTuple):
    """Gain with a few answers over gain with all, both summed over some models: a ratio of means."""

    models: tuple[str, ...]  # whose full gain is above zero beyond noise
    value: float  # NaN where there is none
    interval: Interval  # over queries and draws


def ask_at_random(outcomes: Outcomes, newcomer: str, num: int, rng: Rng) -> Array:
    """Rows of queries to have the newcomer answer, drawn from all."""
    return rng.permutation(len(outcomes))[:num]


def ask_across(outcomes: Outcomes, newcomer: str, num: int, rng: Rng) -> Array:
    """Rows of queries to have the newcomer answer, spread evenly over tasks and, within a task, over how hard it is.

    What the other models scored says how hard. Tasks are those of `routers/tasks.py`; each gets its share.
    """
    others = np.array([candidate.id != newcomer for candidate in outcomes.pool])
    quality = np.where(outcomes.observed, outcomes.values["quality"], np.nan)[:, others]
    known = np.isfinite(quality)
    score = np.where(known, quality, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    task = classes_of(outcomes, embeddings(outcomes.queries), rng).member
    order = np.lexsort((rng.random(len(score)), score, task))
    at = (np.arange(num) + rng.random()) * len(order) / num
    return order[at.astype(np.intp)]


ASK: dict[str, Callable[[Outcomes, str, int, Rng], Array]] = {"random": ask_at_random, "spread": ask_across}


def joined(
    fit: Callable[[Outcomes], OnlineRouter],
    copy: Callable[[OnlineRouter], OnlineRouter],
    pairs: Sequence[tuple[Outcomes, Outcomes]],
    *,
    answers: int = 30,
    draws: int = 8,
    resamples: int = 200,
    seed: int = 0,
    models: Sequence[str] | None = None,
) -> Iterator[dict[str, Joining]]:
    """For each model, by way of asking: what the pool yields without it, with a few of its answers, and with all.

    fit: a router of outcomes. copy: one that learns apart. pairs: (learned from, judged); what is chosen on all judged
    is pooled. The few answers come by `update`. The single models' range of costs is that of the whole pool throughout.
    """
    judged = _pooled([held for _, held in pairs])
    counts = resamples_of(judged, np.random.default_rng(seed), resamples)
    whole = [fit(learned) for learned, _ in pairs]
    full = measures([_choices(router, held, held.pool, learned) for router, (learned, held) in
                     zip(whole, pairs, strict=True)], judged, counts)  # fmt: skip
    for name in [candidate.id for candidate in judged.pool] if models is None else models:
        rest = [candidate for candidate in judged.pool if candidate.id != name]
        alone = [fit(learned.among([candidate.id for candidate in rest])) for learned, _ in pairs]
        parts = [(router, *pair) for router, pair in zip(alone, pairs, strict=True)]
        without = measures([_choices(router, held, rest, learned) for router, learned, held in parts], judged, counts)
        found = {}
        for way, ask in ASK.items():
            few = []
            for draw in range(draws):
                choices = []
                for fold, (router, learned, held) in enumerate(parts):
                    rng = np.random.default_rng([seed, draw, fold])
                    told = learned.among([name]).take(ask(learned, name, answers, rng))
                    knows = copy(router)
                    knows.update(told)
                    choices.append(_choices(knows, held, held.pool, learned))
                few.append(measures(choices, judged, counts))
            found[way] = Joining(name, without, full, np.stack(few))
        yield found


def _choices(router: Any, held: Outcomes, pool: Sequence[Any], learned: Outcomes) -> Array:
    """[p, n] columns of `held.pool` that a router with estimates of cost would choose from a pool."""
    found = router.predict(held.queries, pool)
    column = {candidate.id: j for j, candidate in enumerate(held.pool)}
    at = np.array([column[candidate.id] for candidate in pool])
    return at[choose(found["quality"].mean, found["cost"].mean, TRADE_OFFS, reference_cost(learned))]


def _pooled(parts: Sequence[Outcomes]) -> Outcomes:
    """The queries of several tables of one pool."""
    labels = set.intersection(*(set(part.labels) for part in parts))
    return Outcomes(
        [query for part in parts for query in part.queries],
        parts[0].pool,
        {name: np.concatenate([part.values[name] for part in parts]) for name in ("quality", "cost")},
        np.concatenate([part.observed for part in parts]),
        {name: np.concatenate([part.labels[name] for part in parts]) for name in labels},
    )


def measures(choices: Sequence[Array], judged: Outcomes, counts: Array) -> Array:
    """AIQ and the quality at trade-off 0 of some choices, as they are and resampled: [1 + b, 2]."""
    curve: Curve = realised("", np.concatenate(choices, axis=1), judged)
    cost, quality = weighted_means(curve.cost, counts), weighted_means(curve.quality, counts)
    scales = scales_of(judged, counts)
    aiq = [summarise(q, c, scale).aiq for q, c, scale in zip(quality, cost, scales, strict=True)]
    return np.column_stack([aiq, quality[:, 0]])


def share_of_gain(joinings: Sequence[Joining], measure: int, rng: Rng) -> Share:
    """Over the models whose full gain is clear, by one of MEASURES; the interval resamples queries and draws."""
    clear = [one for one in joinings if one.clear[measure]]
    if not clear:
        return Share((), float("nan"), Interval(float("nan"), float("nan")))
    full = sum((one.full - one.without)[:, measure] for one in clear)
    few = sum((one.few.mean(axis=0) - one.without)[:, measure] for one in clear)
    samples = []
    for b in range(1, len(full)):
        drawn = [one.few[rng.integers(len(one.few), size=len(one.few)), b, measure].mean() for one in clear]
        gained = sum(mean - one.without[b, measure] for mean, one in zip(drawn, clear, strict=True))
        samples.append(gained / full[b] if full[b] > 0 else np.nan)
    return Share(tuple(one.model for one in clear), float(few[0] / full[0]), interval(np.array(samples)))
