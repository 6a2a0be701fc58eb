"""System 85, routing strategies (a survey): which way of routing needs which data, as a table you can ask.

The survey sorts strategies by when they decide and by what they learn from; each row names the parts here.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyroute.errors import ConfigError

STAGES = ("before", "after")  # before an answer is made, or after looking at one
NEEDS = ("nothing", "outcomes", "preferences", "rewards")  # what it learns from


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to route."""

    name: str
    stage: str
    needs: str
    rows: int  # labelled queries from which on it has something to say; a rule of thumb
    parts: tuple[str, ...]
    costs: str  # what it costs beside the answer


STRATEGIES = (
    Strategy("similarity", "before", "outcomes", 200, ("routers.knn:KNN", "routers.cluster:Cluster"), "an embedding"),
    Strategy("supervised", "before", "outcomes", 500, ("routers.linear:Linear", "routers.irt:IRT"), "an embedding"),
    Strategy("profiles", "before", "nothing", 0, ("routers.irt:IRT", "constraints:offers_needs"), "an embedding"),
    Strategy(
        "bandit", "before", "rewards", 100,
        ("routers.linear:Linear", "policies.explore:UCB", "policies.explore:Thompson"),
        "some requests sent to worse candidates to learn",
    ),
    Strategy("budget", "before", "outcomes", 200, ("policies.budget:Budget",), "nothing"),
    Strategy("cascade", "after", "outcomes", 200, ("flows.cascade:cascade",), "the answers that are not taken"),
)  # fmt: skip


def usable(stage: str | None = None, needs: str | None = None, rows: int | None = None) -> list[Strategy]:
    """The strategies that fit: at this stage, with this kind of labels, with this many of them.

    What needs nothing is always usable. Raises: ConfigError for a stage or a kind of labels nobody knows.
    """
    if stage is not None and stage not in STAGES:
        raise ConfigError("stage", got=stage, expected=f"one of {', '.join(STAGES)}")
    if needs is not None and needs not in NEEDS:
        raise ConfigError("needs", got=needs, expected=f"one of {', '.join(NEEDS)}")
    return [
        s for s in STRATEGIES
        if stage in (None, s.stage) and (needs is None or s.needs in (needs, "nothing"))
        and (rows is None or s.rows <= rows)
    ]  # fmt: skip
