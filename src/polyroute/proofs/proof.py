"""What a proof says: the mechanism's effect over its named baseline, and the control that must fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip # 97.5 % quantiles for 1 to 30 degrees of freedom; the last stands for more


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A difference with its interval. More than `margin` counts as an effect."""

    name: str  # what is compared with what
    value: float  # in `unit`, positive where the mechanism helps
    low: float  # lower end of the 95 % interval
    high: float
    unit: str
    margin: float = 0.0

    @property
    def holds(self) -> bool:
        """The whole interval lies above the margin."""
        return self.low > self.margin


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """One run of a proof. It passes when every effect holds and the falsifier's does not."""

    id: int
    name: str
    claim: str  # one sentence: which mechanism, on which data
    baseline: str
    effects: Sequence[Effect]
    falsifier: Effect  # the same measure with the mechanism broken on purpose
    seeds: Sequence[int]
    rows: Sequence[Mapping[str, Any]] = ()  # a table for people
    notes: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(effect.holds for effect in self.effects) and not self.falsifier.holds

    def as_json(self) -> dict[str, Any]:
        """For the one JSON line machines read."""
        return {
            "system": self.id, "name": self.name, "passed": self.passed, "claim": self.claim, "baseline": self.baseline,
            "effects": [asdict(e) | {"holds": e.holds} for e in self.effects],
            "falsifier": asdict(self.falsifier) | {"holds": self.falsifier.holds},
            "seeds": list(self.seeds), "figures": dict(self.figures), "notes": self.notes,
        }  # fmt: skip


Prove: TypeAlias = Callable[[int], Proof]  # seed -> Proof; every proof module has one, named `prove`


def effect_over_seeds(name: str, values: Any, unit: str, margin: float = 0.0) -> Effect:
    """An effect from one value a seed [s]: mean and a 95 % Student interval over the seeds."""
    sample = np.asarray(values, dtype=float)
    n = len(sample)
    quantile = STUDENT[min(n, len(STUDENT) + 1) - 2] if n > 1 else np.inf
    half = quantile * sample.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    mean = float(sample.mean())
    return Effect(name=name, value=mean, low=mean - float(half), high=mean + float(half), unit=unit, margin=margin)


def effect_over_rows(name: str, differences: Any, unit: str, rng: np.random.Generator, margin: float = 0.0) -> Effect:
    """An effect from paired differences of queries [n]: mean and a 95 % percentile bootstrap, 1,000 resamples."""
    rows = np.asarray(differences, dtype=float)
    means = np.array([rows[rng.integers(len(rows), size=len(rows))].mean() for _ in range(1000)])
    low, high = np.percentile(means, [2.5, 97.5])
    return Effect(name=name, value=float(rows.mean()), low=float(low), high=float(high), unit=unit, margin=margin)
