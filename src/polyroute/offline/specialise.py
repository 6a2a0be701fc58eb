"""Whether a specialised model is one: what it gained at home, and what that cost elsewhere.

The three figures are polyroute's own definitions (inferred): the paper that names them gives no formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from polyroute.errors import OutcomesError, ShapeError, UnknownNameError
from polyroute.offline.bootstrap import Interval, interval, resample_counts
from polyroute.types import Array, Rng


class Figure(NamedTuple):
    value: float
    interval: Interval  # 95 %, bootstrap over groups of queries


class Specialisation(NamedTuple):
    """A specialised model against its base. Scores are means in 0..1."""

    dsi: Figure  # domain specialisation index: score at home / mean score elsewhere; 1 is no specialisation
    gg: Figure  # gain gap: gain at home less the mean gain elsewhere
    cdtr: Figure  # cross-domain transfer ratio: mean gain elsewhere / gain at home; negative is forgetting
    gain: Figure  # gain at home
    base: Mapping[str, float]  # domain -> mean score of the base model
    special: Mapping[str, float]


def specialisation(
    base: Array,
    special: Array,
    domains: Array,
    target: str,
    rng: Rng,
    *,
    groups: Array | None = None,
    resamples: int = 1000,
) -> Specialisation:
    """DSI, GG and CDTR of a specialised model, domains weighing alike.

    base, special: [n] scores of the two models on the same queries, higher is better. domains: [n] names. target: the
    domain the model is specialised in. groups: [n] near-duplicates are resampled together.
    CDTR is a ratio of noisy differences: it is NaN where the interval of the gain at home includes 0.
    Raises: UnknownNameError for a target nobody has; OutcomesError with fewer than two domains or scores not finite.
    Source: the names DSI, GG and CDTR are of "Fragile Mastery" (GEM); the formulas are (inferred).
    """
    both, names = np.stack([np.asarray(base, dtype=float), np.asarray(special, dtype=float)]), np.unique(domains)
    if both.ndim != 2 or np.shape(domains) != both.shape[1:]:
        raise ShapeError("domains", got=np.shape(domains), expected=both.shape[1:])
    if not np.isfinite(both).all():
        raise OutcomesError("scores: expected finite numbers for both models on every query, got gaps.")
    if str(target) not in [str(name) for name in names]:
        raise UnknownNameError("domain", str(target), [str(name) for name in names])
    if len(names) < 2:
        raise OutcomesError(f"domains: expected 2 or more, got only {target!r}.")
    member = (np.asarray(domains)[None] == names[:, None]).astype(float)  # [k, n]
    counts = np.vstack([np.ones((1, both.shape[1])), resample_counts(both.shape[1], resamples, rng, groups)])
    with np.errstate(invalid="ignore"):  # a resample may miss a small domain: NaN, left out of the interval
        size = counts @ member.T
        mean = np.stack([counts @ (member * row).T / size for row in both])  # [2, 1 + b, k]
    home = int(np.flatnonzero([str(name) == str(target) for name in names])[0])
    gain = mean[1] - mean[0]
    elsewhere = np.delete(gain, home, axis=1).mean(axis=1)
    at_home = _figure(gain[:, home])
    with np.errstate(divide="ignore", invalid="ignore"):
        dsi = _figure(mean[1][:, home] / np.delete(mean[1], home, axis=1).mean(axis=1))
        ratio = _figure(elsewhere / gain[:, home])
    if at_home.interval.low <= 0 <= at_home.interval.high:
        ratio = Figure(math.nan, Interval(math.nan, math.nan))
    table = [{str(name): float(value) for name, value in zip(names, row[0], strict=True)} for row in mean]
    return Specialisation(dsi, _figure(gain[:, home] - elsewhere), ratio, at_home, *table)


def _figure(values: Array) -> Figure:
    """The first is the figure, the others are its resamples."""
    return Figure(float(values[0]), interval(values[1:]))


def home_of(scores: Array, domains: Array) -> dict[str, float]:
    """Domain -> the DSI the model would have there, greatest first: where it is at home. scores: [n]."""
    names = np.unique(domains)
    mean = np.array([np.asarray(scores, dtype=float)[np.asarray(domains) == name].mean() for name in names])
    elsewhere = np.array([np.delete(mean, k).mean() for k in range(len(names))])
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite where it scores nowhere else
        ratio = np.where(mean > 0, mean / elsewhere, 0.0)
    index = {str(name): float(value) for name, value in zip(names, ratio, strict=True)}
    return dict(sorted(index.items(), key=lambda item: -item[1]))
