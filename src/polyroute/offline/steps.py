"""Steps of agent runs: what a tier costs when prompts are cached, labels by locking step after step, and their scores.

Letters: s steps, b tiers, cheapest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polyroute.errors import ConfigError, ShapeError
from polyroute.types import Array

# USD per 1e6 tokens: fresh input, cache read, cache write, output; tiers low, mid, mid_high, high
PRICES = np.array(
    [[0.26, 0.13, 0.26, 0.5], [0.30, 0.059, 0.30, 2.0], [0.50, 0.05, 0.08333, 5.0], [5.0, 0.5, 6.25, 25.0]]
)
OUTPUT_TOKENS = 500.0  # of an answer whose length is not known
TTL_STEPS = 3  # a cache last used longer ago than this is gone


class StepCost:
    """USD of each step of a run, with the prompt cache it finds: cold at first, after a switch of tier, or too late.

    A step that stays on its tier reads what it shares with the step before and writes the rest; any other writes its
    whole prompt. Without caching (`cached=False`) every prompt token is fresh input.
    """

    def __init__(self, prices: Array = PRICES, *, ttl: int = TTL_STEPS, cached: bool = True):
        self.prices = np.asarray(prices, dtype=float)
        if self.prices.ndim != 2 or self.prices.shape[1] != 4:
            raise ShapeError("prices", got=self.prices.shape, expected=("tiers", 4))
        if not (np.isfinite(self.prices) & (self.prices >= 0)).all():
            raise ConfigError("prices", got=prices, expected="USD per million tokens, 0 or more")
        if ttl < 1:
            raise ConfigError("ttl", got=ttl, expected="1 or more steps")
        self.ttl, self.cached = ttl, cached

    def price(
        self, tiers: Array, prompt: Array, shared: Array, output: Array | None = None, place: Array | None = None
    ) -> Array:
        """[s] USD of one run's steps. tiers: [s] int. prompt: [s] tokens. shared: [s] of them sent by the step before.

        output: [s] tokens, NaN or None where unknown. place: [s] rising step numbers; None: one after the other.
        """
        place = np.arange(len(tiers)) if place is None else place
        output = np.full(len(tiers), np.nan) if output is None else output
        used = np.full(len(self.prices), -np.inf)
        total, last = np.zeros(len(tiers)), -1
        for k, tier in enumerate(tiers):
            warm = tier == last and place[k] - used[tier] <= self.ttl
            total[k] = self.options(prompt[k], shared[k], output[k], int(tier) if warm else None)[tier]
            used[tier], last = place[k], tier
        return total

    def options(self, prompt: float, shared: float, output: float, warm: int | None) -> Array:
        """[b] USD that the next step would cost on each tier. warm: the tier whose cache holds the last prompt."""
        fresh, read, write, out = self.prices.T
        answer = out * (OUTPUT_TOKENS if np.isnan(output) else output)
        if not self.cached:
            return (fresh * prompt + answer) / 1e6
        usd = write * prompt + answer
        if warm is not None:
            usd[warm] = read[warm] * shared + write[warm] * (prompt - shared) + answer[warm]
        return usd / 1e6


class Locked(NamedTuple):
    """The cheapest tiers found for a run's steps, and what finding them took."""

    tiers: Array  # [s] int
    runs: int  # whole runs made


def lock_labels(num_steps: int, passes: Callable[[Sequence[int]], bool], num_tiers: int) -> Locked:
    """Label a run's steps from first to last: the lowest tier with which the whole run still passes.

    passes: whether the run passes in the same number of steps with these tiers, one a step. Steps before stand at the
    tiers found, later ones at the highest. At most num_steps * (num_tiers - 1) + 1 runs.
    Raises: ConfigError if the run fails with all steps at the highest tier: it has no labels.
    """
    top = num_tiers - 1
    tiers, runs = [top] * num_steps, 1
    if not passes(tuple(tiers)):
        raise ConfigError("passes", got=False, expected="a run that passes at the highest tier")
    for step in range(num_steps):
        for tier in range(top):
            runs += 1
            tried = [*tiers[:step], tier, *tiers[step + 1 :]]
            if passes(tuple(tried)):
                tiers = tried
                break
    return Locked(np.array(tiers, dtype=int), runs)


def step_tiers(
    passes: Array, prompt: Array, shared: Array, output: Array, cost: StepCost, *, penalty: float, ahead: int = 1
) -> Array:
    """[s] the tiers of one run, each of least expected bill: cost + penalty * P(the step fails).

    passes: [s, b] P(a tier passes the step). prompt, shared, output: [s] tokens. penalty: USD that a failed step costs,
    such as running the whole again. ahead: steps over which a switch is paid off; a switch is charged the part of its
    cold start beyond 1 / ahead of it.
    """
    tiers, warm = np.zeros(len(passes), dtype=int), None
    for k in range(len(passes)):
        bill = cost.options(prompt[k], shared[k], output[k], warm)
        settled = cost.options(prompt[k], shared[k], output[k], None)
        for tier in range(passes.shape[1]):
            if tier != warm:  # a cold start now buys warm steps later
                kept = cost.options(prompt[k], shared[k], output[k], tier)[tier]
                bill[tier] = kept + (settled[tier] - kept) / ahead
        tiers[k] = int((bill + penalty * (1.0 - passes[k])).argmin())
        warm = int(tiers[k])
    return tiers


class TierScores(NamedTuple):
    """Shares in 0..1; saving may be negative, when failed runs cost more than passed ones save."""

    row_pass: float  # steps at their gold tier or above
    row_exact: float
    run_pass: float  # steps of runs whose every step passes
    saving: float  # of the bill of always the highest tier, benchmarks weighted by steps
    combined: float  # mean of the four


def tier_scores(predicted: Array, gold: Array, run: Array, usd: Array, highest: Array, benchmark: Array) -> TierScores:
    """Score predicted tiers. predicted, gold: [s] int, predicted -1 where the router failed to answer.

    run: [s] which run a step belongs to. usd: [s] cost of the predicted path, as `StepCost` says. highest: [s] cost
    of the path that is always highest. benchmark: [s]. A failed run counts against the saving with everything it cost,
    since it has to be run again: its saving is -usd, not highest - usd.
    Source: TwinRouterBench (github.com/CommonstackAI/TwinRouterBench), the four scores of its second version.
    """
    if not len(gold):
        raise ConfigError("gold", got=[], expected="at least one step")
    row_pass = predicted >= gold
    _, runs = np.unique(run, return_inverse=True)
    failed = np.bincount(runs, weights=~row_pass) > 0
    passed = ~failed[runs]
    answered = predicted >= 0
    saved = np.where(passed, highest - usd, -usd) * answered
    saving = 0.0
    for name in np.unique(benchmark):
        rows = benchmark == name
        bill = float((highest * answered)[rows].sum())
        saving += rows.mean() * (float(saved[rows].sum()) / bill if bill > 0 else 0.0)
    parts = float(row_pass.mean()), float((predicted == gold).mean()), float(passed.mean()), float(saving)
    return TierScores(*parts, combined=sum(parts) / 4)


def episode_bill(spent: Array, resolved: Array, *, penalty: float = 0.60) -> float:
    """USD of live runs: what was spent, and `penalty` for each that was not resolved. spent, resolved: [episodes]."""
    return float(np.sum(spent) + penalty * np.sum(~np.asarray(resolved, dtype=bool)))
