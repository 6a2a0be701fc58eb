"""What /metrics shows: counts, money, and where the time goes, in Prometheus' text format.

    polyroute_stage_seconds{stage}                        histogram, one stage of a request's road
    polyroute_overhead_seconds                            histogram, the gateway's own time in a request
    polyroute_request_seconds{endpoint}                   histogram, the whole request as the client sees it
    polyroute_requests_total{endpoint,model,status}
    polyroute_decisions_total{policy,model}
    polyroute_tokens_total{model,kind}                    kind: prompt, completion
    polyroute_spend_usd_total{model}
    polyroute_guards_total{guard,action}                  requests in which a guard saw something
    polyroute_upstream_failures_total{model,kind}         kind: of UpstreamError, or an HTTP status
    polyroute_in_flight, polyroute_event_loop_lag_seconds (the worst of the last ten seconds)
    polyroute_journal_queued, polyroute_journal_dropped_total, polyroute_journal_ok
    process_*                                             memory, CPU time, open files of this process

Labels take configured names only; whatever else arrives is counted as `other`, so that clients cannot make series.
Numbers are kept in plain dictionaries and turned into Prometheus' families when asked for: one observation costs
about half a microsecond, where prometheus-client's own, with its locks, costs two on the same machine. A finished
request is one observation of all its numbers. So call from one thread, the event loop's.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
ENDPOINTS = ("chat.completions", "completions", "embeddings", "responses", "messages", "route", "feedback")
STAGES = ("accept", "signals", "guard", "cache", "decide", "place", "forward", "settle")
FAILURES = ("refused", "timeout", "cut", "protocol", "busy", "missing")
BOUNDS = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
)  # fmt: skip # seconds; le, inclusive
TALLIES = 1_000  # kinds of requests between two looks
LAG_EVERY_S, LAG_WINDOW = 0.25, 40  # samples


class Timing:
    """A histogram of seconds under one label."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; NaN and negative ones, which a clock that was set back yields, count as 0."""
        seconds = seconds if seconds > 0.0 else 0.0
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, durations up to it), as Prometheus wants them."""
        rows, running = [], 0
        for bound, count in zip((*BOUNDS, inf), self.counts, strict=True):
            running += count
            rows.append(("+Inf" if bound == inf else repr(bound), float(running)))
        return rows


class Tally:
    """Requests alike in endpoint, policy, model and status, since they were last counted into the families."""

    __slots__ = ("completion", "durations", "prompt", "requests", "usd")

    def __init__(self, durations: Timing):
        self.durations = durations  # of the endpoint
        self.requests = self.prompt = self.completion = 0
        self.usd = 0.0


class Telemetry:
    """Takes observations without waiting, and renders them. models, policies, endpoints, stages: the label values."""

    def __init__(
        self,
        *,
        models: Iterable[str] = (),
        policies: Iterable[str] = (),
        endpoints: Iterable[str] = ENDPOINTS,
        stages: Iterable[str] = STAGES,
    ):
        self._models = {name: name for name in (*models, "none")}  # none: turned down before a model was chosen
        self._policies = {name: name for name in (*policies, "named")}
        self._endpoints = {name: name for name in endpoints}
        self._failures = {name: name for name in FAILURES}
        self._stages = {name: Timing() for name in (*stages, OTHER)}
        self._durations = {name: Timing() for name in (*self._endpoints, OTHER)}
        self._overhead = Timing()
        self._requests: dict[tuple[str, ...], float] = {}
        self._decisions: dict[tuple[str, ...], float] = {}
        self._tokens: dict[tuple[str, ...], float] = {}
        self._spend: dict[tuple[str, ...], float] = {}
        self._upstream: dict[tuple[str, ...], float] = {}
        self._guards: dict[tuple[str, ...], float] = {}
        self._tallies: dict[tuple[str, str, str, int], Tally] = {}
        self._sample = {"in_flight": 0.0, "journal_queued": 0.0, "journal_dropped": 0.0, "journal_ok": 1.0}
        self._lags: deque[float] = deque([0.0], maxlen=LAG_WINDOW)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # ---- observations

    def stage(self, name: str, seconds: float) -> None:
        """Time spent in one stage of a request's road."""
        (self._stages.get(name) or self._stages[OTHER]).add(seconds)

    def request(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        """A request was answered, or turned down (model `none`), without a decision."""
        endpoint = self._endpoints.get(endpoint, OTHER)
        bump(self._requests, (endpoint, self._models.get(model, OTHER), status_label(status)))
        self._durations[endpoint].add(seconds)

    def settled(
        self, endpoint: str, policy: str, model: str, status: int, seconds: float, own_s: float,
        prompt: int = 0, completion: int = 0, usd: float = 0.0,
    ) -> None:  # fmt: skip
        """A request that a policy sent to a model is over.

        own_s: the gateway's own time in it, all but the waits for the backend. prompt, completion: tokens used, as the
        backend counted them. What is not above 0 is left out, since a counter never falls.
        """
        tally = self._tallies.get((endpoint, policy, model, status))
        if tally is None:
            tally = self._new_tally(endpoint, policy, model, status)
        tally.requests += 1
        if prompt > 0:
            tally.prompt += prompt
        if completion > 0:
            tally.completion += completion
        if usd > 0.0:
            tally.usd += usd
        tally.durations.add(seconds)
        self._overhead.add(own_s)

    def used(self, model: str, prompt: int, completion: int, usd: float) -> None:
        """Tokens and USD of one answer, where a request paid for several."""
        model = self._models.get(model, OTHER)
        bump(self._tokens, (model, "prompt"), prompt)
        bump(self._tokens, (model, "completion"), completion)
        bump(self._spend, (model,), usd)

    def _new_tally(self, endpoint: str, policy: str, model: str, status: int) -> Tally:
        if len(self._tallies) >= TALLIES:
            self._count_tallies()
        tally = Tally(self._durations[self._endpoints.get(endpoint, OTHER)])
        self._tallies[endpoint, policy, model, status] = tally
        return tally

    def _count_tallies(self) -> None:
        """Count what was settled into the families, under labels that are known."""
        for (endpoint, policy, model, status), tally in self._tallies.items():
            endpoint, model = self._endpoints.get(endpoint, OTHER), self._models.get(model, OTHER)
            bump(self._requests, (endpoint, model, status_label(status)), tally.requests)
            bump(self._decisions, (self._policies.get(policy, OTHER), model), tally.requests)
            bump(self._tokens, (model, "prompt"), tally.prompt)
            bump(self._tokens, (model, "completion"), tally.completion)
            bump(self._spend, (model,), tally.usd)
        self._tallies.clear()

    def guard(self, name: str, action: str) -> None:
        """A guard, named in the configuration, saw something in a request."""
        bump(self._guards, (name, action))

    def upstream_failure(self, model: str, kind: str) -> None:
        """A backend failed. kind: of UpstreamError, or the HTTP status it sent."""
        known = self._failures.get(kind) or status_label(int(kind) if kind.isdecimal() and len(kind) == 3 else 0)
        bump(self._upstream, (self._models.get(model, OTHER), known))

    def sample(self, values: Mapping[str, float]) -> None:
        """Set in_flight, journal_queued, journal_dropped, journal_ok. Raises: KeyError for another name."""
        for name, value in values.items():
            if name not in self._sample:
                raise KeyError(f"no gauge {name!r}; expected one of {', '.join(self._sample)}")
            self._sample[name] = float(value)

    def allow(self, *, models: Iterable[str] = (), policies: Iterable[str] = ()) -> None:
        """Let more configured names be labels, after a change of configuration."""
        self._count_tallies()
        self._models.update({name: name for name in models})
        self._policies.update({name: name for name in policies})

    async def watch_loop(
        self,
        gauges: Callable[[], Mapping[str, float]] | None = None,
        *,
        interval_s: float = LAG_EVERY_S,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Run beside the server: measure how late the event loop wakes us, and sample the gauges. Never returns."""
        while True:
            before = clock()
            await sleep(interval_s)
            self._lags.append(max(0.0, clock() - before - interval_s))
            if gauges is not None:
                self.sample(gauges())

    # ---- rendering

    def render(self) -> bytes:
        """Everything in Prometheus' text format; see CONTENT_TYPE."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """All families, for a Prometheus registry."""
        self._count_tallies()
        yield timings("polyroute_stage_seconds", "Time in one stage of a request's road.", "stage", self._stages)
        overhead = HistogramMetricFamily("polyroute_overhead_seconds", "The gateway's own time in a request.")
        overhead.add_metric([], self._overhead.buckets(), self._overhead.total)
        yield overhead
        yield timings("polyroute_request_seconds", "Whole requests.", "endpoint", self._durations)
        yield counts("polyroute_requests", "Requests answered.", ("endpoint", "model", "status"), self._requests)
        yield counts("polyroute_decisions", "Choices made by policies.", ("policy", "model"), self._decisions)
        yield counts("polyroute_tokens", "Tokens, as backends count.", ("model", "kind"), self._tokens)
        yield counts("polyroute_spend_usd", "Money spent, USD.", ("model",), self._spend)
        yield counts("polyroute_upstream_failures", "Failed calls.", ("model", "kind"), self._upstream)
        yield counts("polyroute_guards", "Requests a guard saw something in.", ("guard", "action"), self._guards)
        yield gauge("polyroute_in_flight", "Requests being served.", self._sample["in_flight"])
        yield gauge("polyroute_event_loop_lag_seconds", "Worst late wake-up in ten seconds.", max(self._lags))
        yield gauge("polyroute_journal_queued", "Records waiting for the file.", self._sample["journal_queued"])
        yield gauge("polyroute_journal_ok", "1: records reach the file.", self._sample["journal_ok"])
        dropped = CounterMetricFamily("polyroute_journal_dropped", "Records lost.")
        dropped.add_metric([], self._sample["journal_dropped"])
        yield dropped


def bump(table: dict[tuple[str, ...], float], key: tuple[str, ...], amount: float = 1.0) -> None:
    """Add to a counter; what is not above 0 is left out, since a counter never falls."""
    if amount > 0.0:
        table[key] = table.get(key, 0.0) + amount


def status_label(status: int) -> str:
    """An HTTP status as a label."""
    return str(status) if 100 <= status <= 599 else OTHER


def timings(name: str, about: str, label: str, table: Mapping[str, Timing]) -> HistogramMetricFamily:
    """Histograms under one label; `other` only where it was needed."""
    family = HistogramMetricFamily(name, about, labels=[label])
    for value, timing in table.items():
        if value != OTHER or any(timing.counts):
            family.add_metric([value], timing.buckets(), timing.total)
    return family


def counts(name: str, about: str, labels: Iterable[str], table: Mapping[tuple[str, ...], float]) -> CounterMetricFamily:
    """Counters under several labels."""
    family = CounterMetricFamily(name, about, labels=list(labels))
    for values, amount in sorted(table.items()):
        family.add_metric(list(values), amount)
    return family


def gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)
