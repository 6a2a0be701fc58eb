"""polyroute: learned routing at every scale.

The vocabulary can be taken from here, `from polyroute import Query, Greedy`; each name is loaded when first used, so
that `import polyroute` costs nothing. Functions stay with their module: `from polyroute.decide import decide`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyroute.errors import PolyrouteError
    from polyroute.policies.budget import Budget, BudgetConfig
    from polyroute.policies.deadline import Deadline
    from polyroute.policies.explore import UCB, Epsilon, Softmax, Thompson
    from polyroute.policies.greedy import Greedy
    from polyroute.protocols import Constraint, Featuriser, Flow, OnlineRouter, Policy, Router
    from polyroute.types import (
        Array,
        Candidate,
        Decision,
        Estimate,
        Estimates,
        Objective,
        Outcome,
        Outcomes,
        Profile,
        Query,
        Rng,
        Selection,
    )

__version__ = "0.1.0"

__all__ = [
    "UCB",
    "Array",
    "Budget",
    "BudgetConfig",
    "Candidate",
    "Constraint",
    "Deadline",
    "Decision",
    "Epsilon",
    "Estimate",
    "Estimates",
    "Featuriser",
    "Flow",
    "Greedy",
    "Objective",
    "OnlineRouter",
    "Outcome",
    "Outcomes",
    "Policy",
    "PolyrouteError",
    "Profile",
    "Query",
    "Rng",
    "Router",
    "Selection",
    "Softmax",
    "Thompson",
]

_MODULES = {
    "errors": ("PolyrouteError",),
    "policies.budget": ("Budget", "BudgetConfig"),
    "policies.deadline": ("Deadline",),
    "policies.explore": ("UCB", "Epsilon", "Softmax", "Thompson"),
    "policies.greedy": ("Greedy",),
    "protocols": ("Constraint", "Featuriser", "Flow", "OnlineRouter", "Policy", "Router"),
}  # every other name in __all__ is in types


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "types")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
