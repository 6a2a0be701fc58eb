"""The endpoints beside the model traffic: models, decisions, feedback, health, metrics and the page."""

from __future__ import annotations

import asyncio
import math
import time
from importlib.resources import files
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote

import msgspec
import numpy as np

from polyroute import __version__
from polyroute.errors import NoCandidateError, UnknownNameError
from polyroute.gateway.answers import ClientGoneError, Headers, Receive, Scope, Send, read_body, send_bytes, send_json
from polyroute.gateway.asked import Asked
from polyroute.gateway.choice import ServedPolicy, new_id, reference_cost
from polyroute.gateway.records import FeedbackRecord
from polyroute.gateway.road import explained, policy_of, trade_off_of
from polyroute.gateway.screening import screen
from polyroute.gateway.telemetry import CONTENT_TYPE
from polyroute.gateway.wire import BadRequestError, given, read_view

if TYPE_CHECKING:
    from polyroute.gateway.app import Gateway

CREATED = 1767225600  # models of a gateway have no birthday; one fixed date keeps listings stable
FRONTIER_TRADE_OFFS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0)
FRONTIER_DECISIONS = 200


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /polyroute/v1/feedback."""

    decision_id: str
    metrics: dict[str, float]
    source: str = ""
    comment: str | None = None


read_feedback = msgspec.json.Decoder(Feedback).decode


def guard(gateway: Gateway, scope: Scope) -> str | None:
    """The caller's name, or BadRequestError where a key is asked for."""
    return gateway.tenant_of(dict(scope["headers"]))


def model_object(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": owner}


def listing(gateway: Gateway) -> list[dict[str, object]]:
    """Virtual models first, then the concrete ones."""
    virtual = [model_object(name, "polyroute") for name in gateway.brain.policies]
    return virtual + [model_object(c.id, "pool") for c in gateway.brain.pool]


async def models(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /v1/models"""
    guard(gateway, scope)
    await send_json(send, 200, {"object": "list", "data": listing(gateway)})


async def model(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /v1/models/{id}; ids may hold slashes."""
    guard(gateway, scope)
    name = unquote(scope["path"].removeprefix("/v1/models/"))
    for entry in listing(gateway):
        if entry["id"] == name:
            return await send_json(send, 200, entry)
    error = UnknownNameError("model", name, [*gateway.brain.policies, *gateway.brain.by_id])
    raise BadRequestError(str(error), "model", status=404, code="model_not_found")


async def route(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /polyroute/v1/route: the decision without the call."""
    tenant = guard(gateway, scope)
    headers = dict(scope["headers"])
    try:
        body = await read_body(receive, gateway.max_body)
        view = read_view(body)
    except ClientGoneError:
        return
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequestError(*explained(error)) from None
    try:
        policy = policy_of(gateway.brain, headers, view.model)
    except UnknownNameError as error:
        raise BadRequestError(str(error), "model", status=404, code="model_not_found") from None
    begin = perf_counter()
    verdict = await screen(gateway, view)
    asked = Asked(
        view, policy, view.model, "route", new_id("req"), trade_off_of(headers), None, tenant, verdict, dry_run=True,
        readable=not (given(view.prompt) or view.stream or given(view.tools)),
    )  # fmt: skip
    try:
        choice = await gateway.brain.decide(asked, company=gateway.in_flight > 0)
    except NoCandidateError as error:
        raise BadRequestError(str(error), "model", code="no_candidate") from None
    gateway.journal.decision(choice.record)
    answer: dict[str, object] = msgspec.to_builtins(choice.record)
    answer["decision_id"] = answer.pop("id")
    answer.pop("embedding", None)
    answer["took_ms"] = round((perf_counter() - begin) * 1e3, 3)
    await send_json(send, 200, answer)


async def feedback(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """POST /polyroute/v1/feedback: a late outcome by decision id."""
    tenant = guard(gateway, scope)
    try:
        told = read_feedback(await read_body(receive, 1 << 20))
    except ClientGoneError:
        return
    except msgspec.MsgspecError as error:
        raise BadRequestError(*explained(error)) from None
    if not told.metrics:
        raise BadRequestError('metrics: expected at least one, e.g. {"quality": 1.0}.', "metrics")
    for name, value in told.metrics.items():
        if not math.isfinite(value) or (name == "quality" and not 0 <= value <= 1):
            raise BadRequestError(f"metrics.{name}: expected a finite number, quality in 0..1, got {value}.", "metrics")
    if await asyncio.to_thread(gateway.journal.find, told.decision_id) is None:
        raise BadRequestError(
            f"No decision {told.decision_id!r}; expected the x-polyroute-decision-id of an answer.",
            "decision_id", status=404, code="decision_not_found",
        )  # fmt: skip
    gateway.journal.feedback(
        FeedbackRecord(
            decision_id=told.decision_id, time=time.time(), metrics=told.metrics,
            source=told.source or tenant or "", comment=told.comment,
        )
    )  # fmt: skip
    await send_json(send, 202, {"decision_id": told.decision_id, "accepted": True})


async def decisions(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /polyroute/v1/decisions?limit=50, newest first."""
    guard(gateway, scope)
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("limit", ["50"])[-1]
    if not asked.isdigit() or not 1 <= int(asked) <= 1000:
        raise BadRequestError(f"limit: expected 1 to 1000, got {asked[:20]!r}.", "limit")
    rows = gateway.journal.recent(int(asked))
    await send_json(send, 200, {"object": "list", "data": [without_vector(row) for row in rows]})


async def decision(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /polyroute/v1/decisions/{id}: everything known about one decision."""
    guard(gateway, scope)
    name = unquote(scope["path"].removeprefix("/polyroute/v1/decisions/"))
    found = await asyncio.to_thread(gateway.journal.find, name)
    if found is None:
        raise BadRequestError(f"No decision {name[:80]!r} in the journal.", status=404, code="decision_not_found")
    await send_json(send, 200, without_vector(found))


def without_vector(row: dict[str, Any]) -> dict[str, Any]:
    """A journal row for people: the embedding stays in the file."""
    kept = {k: v for k, v in row["decision"].items() if k != "embedding"}
    return {**row, "decision": kept}


async def health(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /health: the process lives; no backend is touched."""
    await send_json(send, 200, {"status": "ok", "version": __version__})


async def readiness(gateway: Gateway) -> dict[str, object]:
    """What /ready says: backends, journal, warnings."""
    states = {name: await backend.status() for name, backend in gateway.backends.items()}
    journal = gateway.journal.status()
    usable = [name for name, status in states.items() if status.state != "down"]
    warnings = [*gateway.warnings, *([] if journal.ok else [f"journal: {journal.reason}"])]
    return {
        "ready": bool(usable),
        "models": {name: {"state": s.state, "detail": s.detail} for name, s in states.items()},
        "resting": sorted(gateway.brain.out_of_service()),
        "measured": dict(gateway.brain.measured),
        "journal": journal_view(journal),
        "warnings": warnings,
    }


def journal_view(status: Any) -> dict[str, object]:
    return {
        "ok": status.ok, "reason": status.reason, "queued": status.queued, "written": status.written,
        "dropped": status.dropped,
    }  # fmt: skip


async def ready(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /ready: 200 when at least one model can answer, else 503; troubles that do not stop it are named."""
    state = await readiness(gateway)
    await send_json(send, 200 if state["ready"] else 503, state)


async def metrics(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /metrics in Prometheus' text format."""
    gateway.telemetry.sample(gateway.gauges())
    await send_bytes(send, 200, gateway.telemetry.render(), CONTENT_TYPE)


async def summary(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /polyroute/v1/summary: what the page shows above the decisions."""
    guard(gateway, scope)
    state = await readiness(gateway)
    totals = gateway.journal.totals()
    rows = gateway.journal.recent(FRONTIER_DECISIONS)
    per_model = totals.get("models", {})
    served = max(1, sum(entry.get("requests", 0) for entry in per_model.values()))
    answer = {
        "version": __version__,
        "uptime_s": round(time.time() - gateway.started, 1),
        "requests": totals.get("requests", 0),
        "spend_usd": totals.get("spend_usd", 0.0),
        "dearest_usd": totals.get("dearest_usd", 0.0),
        "best_usd": best_usd(gateway, totals, rows),
        "models": [
            {
                "id": c.id,
                "requests": per_model.get(c.id, {}).get("requests", 0),
                "spend_usd": per_model.get(c.id, {}).get("spend_usd", 0.0),
                "share": per_model.get(c.id, {}).get("requests", 0) / served,
                "status": state["models"][c.id],  # type: ignore[index]
                "price_in": c.profile.price_in,
                "price_out": c.profile.price_out,
            }
            for c in gateway.brain.pool
        ],
        "policies": [policy_view(policy) for policy in gateway.brain.policies.values()],
        "journal": state["journal"],
        "warnings": state["warnings"],
        "frontier": frontier(gateway, rows),
    }
    await send_json(send, 200, answer)


def policy_view(policy: ServedPolicy) -> dict[str, object]:
    return {"name": policy.name, "weights": dict(policy.objective.weights), "trade_off": policy.trade_off}


class Predicted(NamedTuple):
    """What was predicted for r recent decisions that weighed the whole pool of m."""

    quality: np.ndarray  # [r, m]
    cost: np.ndarray  # [r, m] USD
    chosen: np.ndarray  # [r] int


def predicted(gateway: Gateway, rows: list[dict[str, Any]]) -> Predicted | None:
    """The estimates in recent decisions; None where no decision weighed the whole pool."""
    ids = [c.id for c in gateway.brain.pool]
    quality, cost, chosen = [], [], []
    for row in rows:
        by_id = {c["id"]: c.get("mean", {}) for c in row["decision"].get("candidates", [])}
        if all("quality" in by_id.get(i, {}) and "cost" in by_id[i] for i in ids):
            quality.append([by_id[i]["quality"] for i in ids])
            cost.append([by_id[i]["cost"] for i in ids])
            chosen.append(ids.index(row["decision"]["selected"]))
    return Predicted(np.array(quality), np.array(cost), np.array(chosen)) if quality and ids else None


def frontier(gateway: Gateway, rows: list[dict[str, Any]]) -> dict[str, object]:
    """Predicted quality against predicted cost over recent decisions, for a range of trade-offs."""
    found = predicted(gateway, rows)
    basis = f"predicted over the last {0 if found is None else len(found.chosen)} decisions"
    if found is None:
        return {"points": [], "singles": [], "current": None, "basis": basis}
    quality, cost, chosen = found
    every = np.arange(len(quality))
    dearest = reference_cost(gateway.brain.pool) or 1.0
    points = []
    for trade_off in FRONTIER_TRADE_OFFS:
        choice = (quality - trade_off * cost / dearest).argmax(axis=1)
        points.append(
            {
                "trade_off": trade_off,
                "cost_usd": float(cost[every, choice].mean()),
                "quality": float(quality[every, choice].mean()),
            }
        )
    singles = [
        {"id": candidate.id, "cost_usd": float(c), "quality": float(q)}
        for candidate, c, q in zip(gateway.brain.pool, cost.mean(axis=0), quality.mean(axis=0), strict=True)
    ]
    current = {"cost_usd": float(cost[every, chosen].mean()), "quality": float(quality[every, chosen].mean())}
    return {"points": points, "singles": singles, "current": current, "basis": basis}


def best_usd(gateway: Gateway, totals: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """What always taking the model of highest predicted quality would have cost, scaled to all requests."""
    found = predicted(gateway, rows)
    if found is None:
        return None
    quality, cost, _ = found
    best = cost[np.arange(len(quality)), quality.argmax(axis=1)].mean()
    dearest = cost.max(axis=1).mean()
    return float(totals.get("dearest_usd", 0.0) * best / dearest) if dearest > 0 else 0.0


PAGE_HEADERS: Headers = [
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
     b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-cache"),
]  # fmt: skip


async def page(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """GET /: the page people look at. It holds no data; its script asks the endpoints above."""
    text = files("polyroute.gateway").joinpath("page/index.html").read_bytes()
    await send_bytes(send, 200, text, b"text/html; charset=utf-8", PAGE_HEADERS)
