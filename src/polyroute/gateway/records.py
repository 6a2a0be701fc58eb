"""What the gateway writes down: one record when it decides, one when the outcome is known, one per late feedback."""

from __future__ import annotations

from typing import Any

import msgspec


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """A record as JSON-able data."""
    found: dict[str, Any] = msgspec.to_builtins(record)
    return found


class Weighed(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One candidate as it stood when the choice was made. mean and std: metric -> value in its unit."""

    id: str
    mean: dict[str, float] = {}
    std: dict[str, float] = {}
    utility: float | None = None
    refused: str | None = None  # the constraint that ruled it out


class DecisionRecord(msgspec.Struct, kw_only=True, gc=False):
    """One decision, written before its outcome is known."""

    id: str  # decision id, `dec_` and 24 hex digits
    request_id: str
    time: float  # seconds since the epoch
    endpoint: str  # e.g. chat.completions
    requested: str  # the model name the client sent
    policy: str  # `auto`, an operator's name, or `named` where the client named a concrete model
    selected: str
    propensity: float
    because: str
    candidates: list[Weighed] = []
    weights: dict[str, float] = {}  # the objective: utility per unit of each metric
    router: str = ""  # name and version of what predicted
    artefact: str = ""  # fingerprint of the fitted state
    features: str = ""  # featuriser that made `embedding`
    embedding: bytes | None = None  # float16 [d]; None: not kept
    prompt: str | None = None  # the text routed on; only where the operator asks for it
    needs: list[str] = []
    prompt_tokens: int | None = None  # estimated before the call
    session: str | None = None
    tenant: str | None = None
    dry_run: bool = False
    guards: tuple[str, ...] = ()  # those that saw something in the request


class Try(msgspec.Struct, kw_only=True, gc=False):
    """One answer that was asked for and paid, where several were before one was kept."""

    model: str
    status: int  # of the backend; 0: it did not answer
    latency_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


class OutcomeRecord(msgspec.Struct, kw_only=True, gc=False):
    """What a decision yielded, as far as the gateway saw it."""

    decision_id: str
    time: float
    status: int  # HTTP status sent to the client; 499: the client went away
    state: str  # ok, error, cut, cancelled
    selected: str
    attempts: int = 1
    latency_s: float | None = None
    first_byte_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    dearest_usd: float | None = None  # the same usage at the price of the dearest candidate of the pool
    usage: dict[str, object] | None = None  # as the backend sent it
    tries: list[Try] = []  # all answers paid for, where a policy reads them; tokens and cost_usd above are their sums
    error: str | None = None


class FeedbackRecord(msgspec.Struct, kw_only=True, gc=False):
    """A late outcome, reported by whoever used the answer."""

    decision_id: str
    time: float
    metrics: dict[str, float]  # {"quality": 0..1, ...}
    source: str = ""
    comment: str | None = None
