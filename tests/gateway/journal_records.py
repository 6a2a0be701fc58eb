"""Records for tests of the journal and of what reads it."""

from __future__ import annotations

import numpy as np

from polyroute.gateway.records import DecisionRecord, FeedbackRecord, OutcomeRecord, Weighed

MODELS = ("small", "large")


def name(i: int) -> str:
    return f"dec_{i:024x}"


def decision(i: int, **changes: object) -> DecisionRecord:
    """Decision number i; even ones go to `small`, odd ones to `large`."""
    values: dict[str, object] = {
        "id": name(i), "request_id": f"req_{i}", "time": 1_700_000_000.0 + i, "endpoint": "chat.completions",
        "requested": "auto", "policy": "auto", "selected": MODELS[i % 2], "propensity": 0.5, "because": "leads",
        "candidates": [
            Weighed(id="small", mean={"quality": 0.4, "cost": 1e-4}, std={"quality": 0.1}, utility=0.3),
            Weighed(id="large", mean={"quality": 0.8, "cost": 3e-3}, utility=0.2, refused="healthy"),
        ],
        "weights": {"quality": 1.0, "cost": -150.0}, "router": "knn 1", "artefact": "abc", "features": "static-1",
        "embedding": np.arange(4, dtype=np.float16).tobytes(), "prompt_tokens": 600 + i,
    }  # fmt: skip
    return DecisionRecord(**{**values, **changes})  # type: ignore[arg-type]


def outcome(i: int, **changes: object) -> OutcomeRecord:
    """What decision number i yielded: 1 cent each on `small`, 4 on `large`, where `large` is the dearest."""
    values: dict[str, object] = {
        "decision_id": name(i), "time": 1_700_000_000.5 + i, "status": 200, "state": "ok", "selected": MODELS[i % 2],
        "latency_s": 0.5, "first_byte_s": 0.1, "prompt_tokens": 600, "completion_tokens": 200,
        "cost_usd": (0.01, 0.04)[i % 2], "dearest_usd": 0.04, "usage": {"prompt_tokens": 600},
    }  # fmt: skip
    return OutcomeRecord(**{**values, **changes})  # type: ignore[arg-type]


def feedback(i: int, quality: float = 1.0, **changes: object) -> FeedbackRecord:
    values: dict[str, object] = {
        "decision_id": name(i), "time": 1_700_000_001.0 + i, "metrics": {"quality": quality}, "source": "user",
    }  # fmt: skip
    return FeedbackRecord(**{**values, **changes})  # type: ignore[arg-type]
