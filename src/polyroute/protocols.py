"""The few shapes of behaviour everything is made of. To extend polyroute, write an object that fits one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, Self, TypeAlias, runtime_checkable

from polyroute.types import (
    Array,
    Candidate,
    Decision,
    Estimates,
    Objective,
    Outcome,
    Outcomes,
    Query,
    Rng,
    Selection,
)

Constraint: TypeAlias = Callable[[Sequence[Query], Sequence[Candidate]], Array]  # -> [n, m] bool
Flow: TypeAlias = Generator[Decision, Outcome, Outcome]


@runtime_checkable
class Router(Protocol):
    """Learns metrics from outcomes and predicts them in their units. It never chooses."""

    def fit(self, outcomes: Outcomes) -> Self: ...

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates: ...


@runtime_checkable
class OnlineRouter(Router, Protocol):
    """A router that takes new outcomes in without being fitted again."""

    def update(self, outcomes: Outcomes) -> None: ...


class Policy(Protocol):
    """Turns estimates into a choice among the allowed candidates."""

    def decide(self, estimates: Estimates, objective: Objective, allowed: Array, rng: Rng) -> Selection: ...


class Featuriser(Protocol):
    """Turns texts into vectors. name: its identity and version, e.g. `static-1`; saved with every fitted router."""

    name: str
    dim: int

    def __call__(self, texts: Sequence[str]) -> Array:
        """[n, dim] float32 for n texts."""
        ...
