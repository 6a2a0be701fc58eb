"""Running sums over all traffic: counts, tokens, USD and reported quality, by model, policy and state.

Sums are additive, so several processes may keep theirs and add them up in one file; see journal_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeAlias

from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord

TotalKey: TypeAlias = tuple[str, str]  # (what is summed, for which model, policy or state)


class Sums(dict[TotalKey, float]):
    """What has been summed so far. A name that was never added to stands for 0."""

    def __missing__(self, key: TotalKey) -> float:
        return 0.0

    def merge(self, others: Mapping[TotalKey, float]) -> None:
        """Add every sum of another table."""
        for key, amount in others.items():
            self[key] += amount

    def add_decision(self, record: DecisionRecord) -> None:
        """Count a decision. Dry runs are counted apart."""
        if record.dry_run:
            self["dry_runs", ""] += 1.0
        else:
            self["decisions", record.selected] += 1.0
            self["policies", record.policy] += 1.0

    def add_outcome(self, record: OutcomeRecord, sign: float = 1.0) -> None:
        """Count what a request used and cost; sign -1 takes back a record that is being replaced."""
        model, cost = record.selected, record.cost_usd
        self["requests", model] += sign
        self["states", record.state] += sign
        if record.tries:
            for paid in record.tries:
                self.add_use(paid.model, paid.prompt_tokens, paid.completion_tokens, paid.cost_usd, sign)
        else:
            self.add_use(model, record.prompt_tokens, record.completion_tokens, cost, sign)
        if cost is not None and isfinite(cost):
            self["dearest_usd", model] += sign * (cost if record.dearest_usd is None else record.dearest_usd)

    def add_use(self, model: str, prompt: int | None, completion: int | None, cost: float | None, sign: float) -> None:
        """Count tokens and USD of one answer."""
        if prompt:
            self["prompt_tokens", model] += sign * prompt
        if completion:
            self["completion_tokens", model] += sign * completion
        if cost is not None and isfinite(cost):
            self["spend_usd", model] += sign * cost

    def add_quality(self, model: str, quality: object) -> None:
        """Count one reported quality of an answer by `model`; anything but a finite number is left out."""
        if isinstance(quality, (int, float)) and isfinite(quality):
            self["quality", model] += quality
            self["quality_reports", model] += 1.0

    def add_record(self, record: DecisionRecord | OutcomeRecord | FeedbackRecord, served_by: str) -> None:
        """Count any record. served_by: the model that feedback is about."""
        if isinstance(record, DecisionRecord):
            self.add_decision(record)
        elif isinstance(record, OutcomeRecord):
            self.add_outcome(record)
        else:
            self.add_quality(served_by, record.metrics.get("quality"))

    def of(self, name: str) -> dict[str, float]:
        """label -> sum."""
        return {label: amount for (own, label), amount in self.items() if own == name}

    def view(self) -> dict[str, Any]:
        """Everything as plain data: counts, USD, tokens; quality is a mean, None where nothing was reported.

        `dearest_usd` is what the same usage would have cost at the dearest candidate of each request's pool,
        and `saved_usd` the difference to `spend_usd`; a request without that figure counts as no saving.
        """
        table = {name: self.of(name) for name in SUMMED}
        total = {name: sum(column.values()) for name, column in table.items()}
        models = {
            model: {
                **{name: whole(name, table[name].get(model, 0.0)) for name in SUMMED if name != "quality"},
                "quality": mean(table["quality"].get(model, 0.0), table["quality_reports"].get(model, 0.0)),
            }
            for model in sorted({model for column in table.values() for model in column} - {""})
        }
        return {
            **{name: whole(name, amount) for name, amount in total.items() if name != "quality"},
            "saved_usd": total["dearest_usd"] - total["spend_usd"],
            "quality": mean(total["quality"], total["quality_reports"]),
            "dry_runs": int(self.get(("dry_runs", ""), 0.0)),
            "states": {state: int(count) for state, count in self.of("states").items() if count},
            "policies": {policy: int(count) for policy, count in self.of("policies").items()},
            "models": models,
        }


SUMMED = (
    "decisions", "requests", "spend_usd", "dearest_usd", "prompt_tokens", "completion_tokens", "quality",
    "quality_reports",
)  # fmt: skip


def whole(name: str, amount: float) -> float | int:
    """USD as they are, counts as integers."""
    return amount if name.endswith("_usd") else round(amount)


def mean(total: float, count: float) -> float | None:
    """None of nothing."""
    return total / count if count else None
