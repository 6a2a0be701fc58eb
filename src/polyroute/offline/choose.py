"""Settings of a router chosen by how well it does on held-out queries: AIQ where the table is complete, else Brier.

Nothing here sees a test split: pass what may be learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from polyroute.errors import UnknownNameError
from polyroute.offline.calibration import brier
from polyroute.offline.frontier import TRADE_OFFS, Scale, realised, reference_cost, scale_of, summarise
from polyroute.offline.frontier import choose as choose_columns
from polyroute.offline.split import folds, has_split, part
from polyroute.protocols import Router
from polyroute.routers.bradley_terry import BradleyTerry
from polyroute.routers.calibrate import Calibrated
from polyroute.routers.cluster import Cluster
from polyroute.routers.irt import IRT
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix
from polyroute.types import Array, Outcomes

Settings = Mapping[str, Any]
Chosen = dict[str, dict[str, Any]]  # family -> its settings


class Family(NamedTuple):
    """A router and the settings worth trying, the most cautious first: it wins ties."""

    build: Callable[..., Router]
    settings: tuple[Settings, ...]


def grid(**values: Sequence[Any]) -> tuple[Settings, ...]:
    """Every combination of values."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


FAMILIES: dict[str, Family] = {
    "knn": Family(KNN, grid(k=(160, 120, 80, 40, 20), kappa=(100.0, 50.0, 20.0))),
    "linear": Family(Linear, grid(l2=(100.0, 30.0, 10.0, 3.0, 1.0), rank=(32, 64, 128))),
    "cluster": Family(Cluster, grid(num_clusters=(8, 16, 32, 64), kappa=(30.0, 10.0, 3.0))),
    "irt": Family(IRT, grid(l2=(30.0, 10.0, 3.0, 1.0))),
    "bradley-terry": Family(BradleyTerry, grid(sharpness=(100.0, 1e3, 1e4), kappa=(20.0, 5.0))),
}
COMPOSED: dict[str, tuple[str, ...]] = {"mix": ("knn", "linear", "cluster"), "calibrated": ("knn", "linear", "cluster")}
QUALITY_ROUTERS = (*FAMILIES, *COMPOSED)


class Trial(NamedTuple):
    """Queries to learn from and queries, of other groups, to judge by."""

    train: Outcomes
    held_out: Outcomes
    cost: Array | None  # [n, m] expected cost of the held-out queries, USD; None: judge by Brier score
    reference: float  # USD, mean cost of the dearest model in `train`
    scale: Scale


class Tried(NamedTuple):
    settings: Settings
    score: float  # higher is better: mean AIQ over the trials, or minus the Brier score


def cost_router() -> Router:
    """The cost estimate of the common protocol: a ridge per model on prompt tokens and embedding, USD."""
    return Linear("cost", "ridge", l2=1.0, rank=64, tokens="linear")


def quality_router(name: str, chosen: Chosen, prior: Router | None = None) -> Router:
    """A router of a name of QUALITY_ROUTERS, not fitted, with the settings chosen for its families.

    prior: fitted, predicts quality; what neighbours, lines and clusters shrink to. An IRT takes none.
    """
    if name in COMPOSED:
        mix = Mix([quality_router(member, chosen, prior) for member in COMPOSED[name]])
        return Calibrated(mix) if name == "calibrated" else mix
    if name not in FAMILIES:
        raise UnknownNameError("quality router", name, QUALITY_ROUTERS)
    extra = {} if prior is None or name == "irt" else {"prior": prior}
    return FAMILIES[name].build(**chosen.get(name, {}), **extra)


def families_of(name: str) -> tuple[str, ...]:
    """The families whose settings a router needs."""
    if name not in QUALITY_ROUTERS:
        raise UnknownNameError("quality router", name, QUALITY_ROUTERS)
    return COMPOSED.get(name, (name,))


def trials(outcomes: Outcomes, seed: int = 0, num_folds: int = 5) -> list[Trial]:
    """`valid` judged by a router of `train` where the table has both, else group-aware folds of everything.

    Raises: OutcomesError where too few groups are left to hold any out.
    """
    if has_split(outcomes, "valid"):
        parts = iter([(part(outcomes, "train"), part(outcomes, "valid"))])
    else:
        parts = iter((train, held_out) for train, held_out, _ in folds(outcomes, num_folds, seed))
    return [trial_of(train, held_out) for train, held_out in parts]


def trial_of(train: Outcomes, held_out: Outcomes) -> Trial:
    """A trial; where every model answered every held-out query, with the cost estimate to judge choices by."""
    quality, cost = held_out.values["quality"], held_out.values["cost"]
    if not (held_out.observed.all() and np.isfinite(quality).all() and np.isfinite(cost).all()):
        return Trial(train, held_out, None, 1.0, Scale(0.0, 0.0, 0.0, 0.0, 0.0))
    expected = cost_router().fit(train).predict(held_out.queries, held_out.pool)["cost"].mean
    scale = scale_of(quality.mean(axis=0), cost.mean(axis=0))
    return Trial(train, held_out, expected, reference_cost(train), scale)


def score(quality: Array, trial: Trial) -> float:
    """How good expected qualities [n, m] are for choosing: AIQ, or minus the Brier score. Higher is better."""
    table = trial.held_out
    if trial.cost is None:
        return -brier(quality, np.where(table.observed, table.values["quality"], np.nan))
    curve = realised("tried", choose_columns(quality, trial.cost, TRADE_OFFS, trial.reference), table)
    return summarise(curve.quality.mean(axis=1), curve.cost.mean(axis=1), trial.scale).aiq


def try_settings(family: str, table_trials: Sequence[Trial], prior: Router | None = None) -> Iterator[Tried]:
    """Fit and judge a family at each of its settings; yields as it goes, so that progress can be shown."""
    for settings in FAMILIES[family].settings:
        scores = []
        for trial in table_trials:
            router = quality_router(family, {family: dict(settings)}, prior).fit(trial.train)
            estimate = router.predict(trial.held_out.queries, trial.held_out.pool)["quality"]
            scores.append(score(estimate.mean, trial))
        yield Tried(settings, float(np.mean(scores)))


def best(tried: Sequence[Tried]) -> Tried:
    """The highest score; among equals the first."""
    return max(tried, key=lambda one: one.score)
