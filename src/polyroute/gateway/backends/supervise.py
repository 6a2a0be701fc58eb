"""Keep one worker process alive: started when first needed, restarted when it dies, gone when we are gone.

The worker is any command that prints one JSON line on its stdout once it listens, {"address": "http://127.0.0.1:1234"},
or {"error": "why not"} before it gives up; that ends when its stdin ends; and that logs to stderr. A first line on its
stdin, {"api_key": "..."}, tells it which bearer token to ask of callers, so that no other program of this machine
can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from polyroute.errors import UpstreamError
from polyroute.gateway.backends.status import BackendStatus

LOG_LIMIT = 5_000_000  # bytes; a longer log is set aside when the worker starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervision:
    """How patient a `Supervisor` is, in seconds unless it says otherwise."""

    start_s: float = 120.0  # until the worker must answer
    backoff_s: float = 0.5  # before the first restart; doubles with each crash in a row
    quick_s: float = 30.0  # a worker that lived longer did not crash quickly
    quick_crashes: int = 3  # in a row (a count), then it counts as down
    retry_s: float = 30.0  # down for so long, then the next request may try again
    grace_s: float = 5.0  # from SIGTERM to SIGKILL


class Running(NamedTuple):
    """A worker that answers."""

    process: Process
    address: str  # http://127.0.0.1:port
    api_key: str
    since: float  # seconds of the clock


class Supervisor:
    """Owns one worker process. `running` gives the one that answers, starting it where needed.

    healthy: asks an address whether it answers. The process starts nothing by itself until `running` is awaited for
    the first time; after a crash it is restarted unasked. A start that fails is reported to those who wait for it and
    tried again for the next request, until `quick_crashes` in a row make it `down` for `retry_s`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        healthy: Callable[[str], Awaitable[bool]],
        limits: Supervision = Supervision(),
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.command, self.log, self.healthy = name, list(command), log, healthy
        self.limits, self.clock = limits, clock
        self._running: Running | None = None
        self._starting: asyncio.Task[Running] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._process: Process | None = None  # also while it starts
        self._crashes = 0  # in a row
        self._not_before = 0.0
        self._reason = ""
        self._closed = False

    async def running(self) -> Running:
        """The worker, once it answers. Cancelling a wait does not cancel the start.

        Raises: UpstreamError (refused) when it cannot be started, at once while it counts as down.
        """
        while self._running is not None:
            if self._running.process.returncode is None:
                return self._running
            await asyncio.sleep(0.001)  # it just died and its watcher is about to see that
        if self._closed:
            raise UpstreamError("refused", f"{self.name}: the worker is stopped.")
        if self._starting is None:
            if self.down():
                raise UpstreamError("refused", self.problem())
            self._begin()
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    def down(self) -> bool:
        """Whether it crashed so often that nobody tries for now."""
        return self._crashes >= self.limits.quick_crashes and self.clock() < self._not_before

    def problem(self) -> str:
        """What went wrong last, for the operator."""
        wait = max(0.0, self._not_before - self.clock())
        again = f"; tried again in {wait:.0f} s" if self.down() else "; tried again with the next request"
        times = f" {self._crashes} times in a row" if self._crashes > 1 else ""
        return f"{self.name}: the worker failed{times}: {self._reason} (log: {self.log}){again}."

    def status(self) -> BackendStatus:
        """Where it stands, without asking it."""
        if self._closed:
            return BackendStatus("down", "stopped")
        if self._running is not None:
            return BackendStatus("ready", f"pid {self._running.process.pid}, {self._running.address}")
        if self._starting is not None:
            return BackendStatus("starting", f"restarting after: {self._reason}" if self._crashes else "")
        if self._crashes:
            return BackendStatus("down", self.problem())
        return BackendStatus("cold", "starts with the first request")

    async def died(self, running: Running, within_s: float) -> str | None:
        """How that worker ended if it ends within the time, else None."""
        if running.process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.process.wait(), within_s)
        return None if running.process.returncode is None else ending(running.process.returncode)

    async def close(self) -> None:
        """Stop the worker: SIGTERM, and SIGKILL after the grace time. Safe to call twice."""
        self._closed = True
        for task in (self._watching, self._starting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, UpstreamError):
                    await task
        self._running = self._starting = self._watching = None
        await self._stop()

    def _begin(self) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._starting.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[Running]) -> None:
        if not task.cancelled():
            task.exception()  # seen: those who wait get it too, and nobody has to wait
        if self._starting is task:
            self._starting = None

    async def _start(self) -> Running:
        """Wait out the back-off, start the process, wait until it answers, then watch it."""
        await asyncio.sleep(max(0.0, self._not_before - self.clock()))
        try:
            running = await asyncio.wait_for(self._spawn(), self.limits.start_s)
        except (TimeoutError, OSError, ValueError, WorkerError) as problem:
            reason = "it did not answer in time" if isinstance(problem, TimeoutError) else str(problem)
            await self._stop()
            self._count(reason, quick=True)
            raise UpstreamError("refused", self.problem()) from problem
        self._running = running
        self._watching = asyncio.get_running_loop().create_task(self._watch(running))
        return running

    async def _spawn(self) -> Running:
        key = secrets.token_hex(16)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(self.command)}\n".encode())
            log.flush()
            process = self._process = await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps({"api_key": key}).encode() + b"\n")
            await process.stdin.drain()
        address = first_words(await process.stdout.readline(), await self._code_if_over(process))
        while not await self.healthy(address):
            if process.returncode is not None:
                raise WorkerError(f"it {ending(process.returncode)} before it answered")
            await asyncio.sleep(0.05)
        return Running(process, address, key, self.clock())

    async def _code_if_over(self, process: Process) -> int | None:
        """The exit code of a process that closed its stdout without a word, else None."""
        assert process.stdout is not None
        if not process.stdout.at_eof():
            return None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 1.0)
        return process.returncode

    async def _watch(self, running: Running) -> None:
        """Wait for the worker's end; it should have none, so start another."""
        code = await running.process.wait()
        self._running = None
        await self._stop()  # its end of our pipes
        self._count(f"it {ending(code)}", quick=self.clock() - running.since < self.limits.quick_s)
        if not self.down():
            self._begin()

    def _count(self, reason: str, *, quick: bool) -> None:
        """One more crash; decide when the next start may be."""
        self._reason = reason
        self._crashes = self._crashes + 1 if quick else 1
        wait = self.limits.backoff_s * 2 ** (self._crashes - 1)
        if self._crashes >= self.limits.quick_crashes:
            wait = self.limits.retry_s
        self._not_before = self.clock() + wait

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        for stop in (process.terminate, process.kill):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    stop()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), self.limits.grace_s)


class WorkerError(Exception):
    """The worker did not come up; the message completes the sentence 'the worker failed: ...'."""


def first_words(line: bytes, code: int | None) -> str:
    """The address in a worker's first line. Raises: WorkerError with the worker's own reason, or with how it ended."""
    if not line:
        raise WorkerError(f"it {ending(code)}" if code is not None else "it closed its output without a word")
    try:
        words = json.loads(line)
        if "error" in words:
            raise WorkerError(str(words["error"]))
        return str(words["address"])
    except (ValueError, KeyError, TypeError):
        raise WorkerError(f'expected {{"address": URL}} as its first line, got {line[:80]!r}') from None


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
