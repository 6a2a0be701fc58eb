"""The gateway: one ASGI application. Every request finds its handler in one table; see ROUTES."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from polyroute.errors import PolyrouteError
from polyroute.gateway import control, origins
from polyroute.gateway.answers import Receive, Scope, Send, send_error
from polyroute.gateway.backends.status import Backend
from polyroute.gateway.brain import Brain
from polyroute.gateway.guards import Guards
from polyroute.gateway.journal import Journal
from polyroute.gateway.road import travel
from polyroute.gateway.telemetry import Telemetry
from polyroute.gateway.transport import Timeouts, Transport
from polyroute.gateway.wire import BadRequestError, Usage
from polyroute.types import Outcomes, Query

Handler: TypeAlias = Callable[["Gateway", Scope, Receive, Send], Awaitable[None]]
COOLDOWN_S = 15.0  # a candidate that failed three times in a row rests this long
FAILURES_BEFORE_REST = 3
LEARN_EVERY_S = 1.0
LEARN_AT_MOST = 64  # answers taken in at once, evenly from those of the last second
log = logging.getLogger("polyroute.gateway")


def model_endpoint(endpoint: str) -> Handler:
    """A handler that sends a model request on its road."""

    def handle(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return travel(gateway, scope, receive, send, endpoint)

    return handle


ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/v1/chat/completions": {"POST": model_endpoint("chat.completions")},
    "/v1/completions": {"POST": model_endpoint("completions")},
    "/v1/embeddings": {"POST": model_endpoint("embeddings")},
    "/v1/models": {"GET": control.models},
    "/polyroute/v1/route": {"POST": control.route},
    "/polyroute/v1/feedback": {"POST": control.feedback},
    "/polyroute/v1/decisions": {"GET": control.decisions},
    "/polyroute/v1/summary": {"GET": control.summary},
    "/health": {"GET": control.health},
    "/healthz": {"GET": control.health},
    "/ready": {"GET": control.ready},
    "/metrics": {"GET": control.metrics},
    "/": {"GET": control.page},
}
PREFIXES: Mapping[str, Mapping[str, Handler]] = {
    "/v1/models/": {"GET": control.model},
    "/polyroute/v1/decisions/": {"GET": control.decision},
}


def endpoint_of(scope: Scope) -> Mapping[str, Handler] | None:
    """The handlers of a path that is not in ROUTES as it stands: one with an id in it, or with a slash too many."""
    path: str = scope["path"]
    shorter = path.rstrip("/")
    if shorter in ROUTES and shorter != path:
        scope["path"] = shorter
        return ROUTES[shorter]
    return next((table for prefix, table in PREFIXES.items() if path.startswith(prefix)), None)


def nowhere(path: str) -> str:
    """What to tell a client that asks for a path that is not there; most often its base URL is at fault."""
    for meant in (f"/v1{path}", path.removeprefix("/v1"), "/" + path.lstrip("/")):
        if meant in ROUTES and meant != path:
            return f"No endpoint {path!r}; did you mean {meant!r}? The base URL of an OpenAI client ends in /v1, once."
    return f"No endpoint {path!r}. See /v1/models and the docs."


@dataclass(kw_only=True)
class Gateway:
    """The running gateway: what it may call, what it knows, what it writes down."""

    brain: Brain
    backends: Mapping[str, Backend]
    upstream_names: Mapping[str, str]  # candidate id -> the name its backend knows
    journal: Journal
    telemetry: Telemetry
    transport: Transport
    timeouts: Timeouts = field(default_factory=Timeouts)
    client_keys: Sequence[str] = ()  # empty: no client authentication
    allow_origins: Sequence[str] = ()  # of pages in browsers that may call, lower case, or `*`; empty: none
    max_body: int = 20 << 20  # bytes
    max_attempts: int = 3
    answer_requested: bool = False  # answers carry the requested name instead of the served model's
    warnings: Sequence[str] = ()  # what is missing; shown in /ready and on the page
    guards: Guards = field(default_factory=lambda: Guards({}))

    def __post_init__(self) -> None:
        self.in_flight = 0
        self.started = time.time()
        self.failures: dict[str, int] = {}
        self.latencies: list[tuple[str, float, Usage | None]] = []
        self.key_hashes = [hashlib.sha256(key.encode()).digest() for key in self.client_keys]
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.lifespan(receive, send)
        if scope["type"] != "http":
            raise PolyrouteError(f"expected an HTTP request, got {scope['type']!r}")
        methods = ROUTES.get(scope["path"]) or endpoint_of(scope)
        if self.allow_origins:
            send = origins.telling(send, origins.allowance(scope, self.allow_origins))
            if methods is not None and origins.asks_first(scope):
                return await origins.preflight(scope, send, methods)
        if methods is None:
            return await send_error(send, 404, nowhere(scope["path"]), code="not_found")
        method = scope["method"]
        handler = methods.get("GET" if method == "HEAD" else method)  # the front door leaves the body of a HEAD out
        if handler is None:
            wanted = ", ".join(methods)
            message = f"{scope['path']}: expected {wanted}, got {method}."
            allow = [(b"allow", (wanted.replace("GET", "GET, HEAD")).encode())]
            return await send_error(send, 405, message, code="method", headers=allow)
        try:
            await handler(self, scope, receive, send)
        except BadRequestError as error:
            await send_error(send, error.status, str(error), error.parameter, error.code)

    async def lifespan(self, receive: Receive, send: Send) -> None:
        """Start the background work, stop it, drain the journal, close the backends."""
        await receive()
        loop = asyncio.get_running_loop()
        await self.look_around()
        self.tasks = [loop.create_task(self.learn()), loop.create_task(self.telemetry.watch_loop(self.gauges))]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Stop everything this gateway started; every accounted record is on disk afterwards."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(b.close() for b in self.backends.values()), return_exceptions=True)
        await self.transport.close()
        await asyncio.to_thread(self.journal.close)

    def tenant_of(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Who calls: `key-1` for the first configured key. Raises BadRequestError (401) for a wrong or absent key."""
        if not self.key_hashes:
            return None
        given = headers.get(b"authorization", b"")
        token = given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(token).digest()
        for i, known in enumerate(self.key_hashes):
            if hmac.compare_digest(digest, known):
                return f"key-{i + 1}"
        raise BadRequestError(
            "Expected a client key of this gateway as `Authorization: Bearer ...` or `x-api-key`.",
            status=401, code="invalid_api_key",
        )  # fmt: skip

    def failed(self, candidate_id: str, kind: str, wait_s: float | None = None) -> None:
        """A backend failed: after three in a row, or when it names a wait, it rests."""
        count = self.failures[candidate_id] = self.failures.get(candidate_id, 0) + 1
        if wait_s is not None or count >= FAILURES_BEFORE_REST:
            rest = COOLDOWN_S if wait_s is None else min(wait_s, 300.0)
            self.brain.down[candidate_id] = time.monotonic() + rest
        self.telemetry.upstream_failure(candidate_id, kind)

    def worked(self, candidate_id: str) -> None:
        """A backend answered: its failures are forgotten."""
        if self.failures:
            self.failures.pop(candidate_id, None)

    def observed(self, candidate_id: str, latency_s: float, usage: Usage | None) -> None:
        """Remember a latency for the next learning step."""
        if len(self.latencies) < 10_000:
            self.latencies.append((candidate_id, latency_s, usage))

    async def learn(self) -> None:
        """Every second, hand the latencies seen since to the router, and see which backends can answer."""
        while True:
            await asyncio.sleep(LEARN_EVERY_S)
            try:
                await self.look_around()
                if self.latencies:
                    taken, self.latencies = self.latencies, []
                    self.take_in(taken[:: 1 + len(taken) // LEARN_AT_MOST])
            except Exception:  # serving goes on without what this second could have taught
                log.exception("learning from the last second failed")

    async def look_around(self) -> None:
        """Note the backends that are down, so that no decision goes there."""
        states = {name: await backend.status() for name, backend in self.backends.items()}
        self.brain.missing = frozenset(name for name, status in states.items() if status.state == "down")

    def take_in(self, seen: Sequence[tuple[str, float, Usage | None]]) -> None:
        """Latencies (candidate, seconds, usage) as an outcome log, one True per row."""
        update = getattr(self.brain.router, "update", None)
        if update is None:
            return
        pool = list(self.brain.pool)
        column = {candidate.id: j for j, candidate in enumerate(pool)}
        nowhere = np.zeros(self.brain.featuriser.dim, dtype=np.float32)
        observed = np.zeros((len(seen), len(pool)), dtype=bool)
        values = {name: np.full(observed.shape, np.nan) for name in ("latency", "output_tokens")}
        queries = []
        for i, (candidate_id, latency, usage) in enumerate(seen):
            j = column[candidate_id]
            observed[i, j] = True
            values["latency"][i, j] = latency
            if usage is not None and usage.completion_tokens is not None:
                values["output_tokens"][i, j] = usage.completion_tokens
            tokens = usage.prompt_tokens if usage is not None else None
            queries.append(Query(str(i), embedding=nowhere, num_tokens=tokens or 0))
        update(Outcomes(queries, pool, values, observed))

    def gauges(self) -> dict[str, float]:
        """What the telemetry samples once a second."""
        status = self.journal.status()
        return {
            "in_flight": self.in_flight,
            "journal_queued": status.queued,
            "journal_dropped": status.dropped,
            "journal_ok": float(status.ok),
        }
