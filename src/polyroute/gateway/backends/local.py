"""A model file run on this machine, in a worker process of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polyroute.errors import ConfigError, UpstreamError
from polyroute.gateway.backends.status import BackendStatus
from polyroute.gateway.backends.supervise import Running, Supervision, Supervisor
from polyroute.gateway.transport import Headers, Reply, Timeouts, Transport

HEALTH = Timeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0, total_s=5.0)
NOTICE_S = 0.5  # a broken connection and the end of its worker are seen within this
BROKEN = frozenset(("cut", "refused", "protocol"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSettings:
    """How a `LocalBackend` runs its model."""

    threads: int = 1
    context: int = 4096  # tokens per request, prompt and answer together
    slots: int = 4  # requests served at once
    waiting: int = 32  # requests that may wait for a slot; more are refused as busy
    chat_template: str | None = None  # Jinja text, where the file has none

    def __post_init__(self) -> None:
        for name in ("threads", "context", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"local.{name}", got=getattr(self, name), expected="1 or more")
        if self.waiting < 0:
            raise ConfigError("local.waiting", got=self.waiting, expected="0 or more")


class LocalBackend:
    """Serves a GGUF file with llama.cpp's server, started by the first request.

    pull_name: the file's name in the catalogue, to say how to get it. log_folder: where the worker's output goes.
    worker_command: another worker to run instead, for tests; see supervise.py for what it must do.
    """

    path = "upstream"

    def __init__(
        self,
        id: str,
        file: Path,
        transport: Transport,
        settings: LocalSettings = LocalSettings(),
        supervision: Supervision = Supervision(),
        *,
        pull_name: str | None = None,
        log_folder: Path,
        worker_command: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.id, self.file, self.transport, self.settings, self.clock = id, file, transport, settings, clock
        self.pull_name, self._own_worker = pull_name, worker_command is None
        self._in_flight = 0
        log = log_folder / f"{''.join(c if c.isalnum() or c in '-._' else '_' for c in id)}.log"
        command = worker_command or self._command()
        self.worker = Supervisor(id, command, log, self._healthy, supervision, clock=clock)

    def _command(self) -> list[str]:
        settings = self.settings
        command = [
            sys.executable, "-m", "polyroute.gateway.backends.worker", "--file", str(self.file), "--alias", self.id,
            "--threads", str(settings.threads), "--slots", str(settings.slots), "--context", str(settings.context),
        ]  # fmt: skip
        return command + (["--chat-template", settings.chat_template] if settings.chat_template else [])

    async def send(self, path: str, headers: Headers, body: bytes, timeouts: Timeouts) -> Reply:
        """As `Backend.send`; the time a cold start takes counts towards first_byte_s and total_s."""
        if (problem := self._missing()) is not None:
            raise UpstreamError("missing", f"{self.id}: {problem}")
        if self._in_flight >= self.settings.slots + self.settings.waiting:
            raise UpstreamError("busy", f"{self.id}: {self._in_flight} requests are served or wait already.")
        self._in_flight += 1
        try:
            reply = await self._send(path, headers, body, timeouts)
        except BaseException:
            self._in_flight -= 1
            raise
        return reply

    async def _send(self, path: str, headers: Headers, body: bytes, timeouts: Timeouts) -> Reply:
        began = self.clock()
        try:
            running = await asyncio.wait_for(self.worker.running(), min(timeouts.first_byte_s, timeouts.total_s))
        except TimeoutError:
            raise UpstreamError("timeout", f"{self.id}: the model is still being loaded.") from None
        waited = self.clock() - began
        left = replace(
            timeouts,
            first_byte_s=max(0.01, timeouts.first_byte_s - waited),
            total_s=max(0.01, timeouts.total_s - waited),
        )
        ours = [pair for pair in headers if pair[0] != b"authorization"]
        ours.append((b"authorization", b"Bearer " + running.api_key.encode()))
        try:
            reply = await self.transport.send("POST", running.address + path, ours, body, left)
        except UpstreamError as error:
            raise await self._explained(error, running) from error
        return WorkerReply(reply, lambda error: self._explained(error, running), self._finished)

    def _finished(self) -> None:
        self._in_flight -= 1

    async def _explained(self, error: UpstreamError, running: Running) -> UpstreamError:
        """The same error, or that the worker died, where that is the reason."""
        if error.kind not in BROKEN or (how := await self.worker.died(running, NOTICE_S)) is None:
            return error
        return UpstreamError("cut", f"{self.id}: the worker {how} while it served this request.")

    async def _healthy(self, address: str) -> bool:
        try:
            reply = await self.transport.send("GET", address + "/health", [], b"", HEALTH)
            try:
                return reply.status == 200
            finally:
                await reply.close()
        except UpstreamError:
            return False

    def _missing(self) -> str | None:
        """What must be installed or fetched before this can work."""
        if self._own_worker and importlib.util.find_spec("xllamacpp") is None:
            return "xllamacpp is not installed; it comes with: pip install 'polyroute[local]'"
        if not self.file.is_file():
            what = f"run: polyroute models pull {self.pull_name}" if self.pull_name else "put it there"
            return f"the model file {self.file} is not there; {what}"
        return None

    async def status(self) -> BackendStatus:
        problem = self._missing()
        return self.worker.status() if problem is None else BackendStatus("down", problem)

    async def close(self) -> None:
        await self.worker.close()


class WorkerReply:
    """A worker's reply whose errors say so when the worker died. finished: called once, when it is read or closed.

    Which pages may call is for the gateway to say, so the worker's own word on that is left out.
    """

    def __init__(
        self,
        reply: Reply,
        explained: Callable[[UpstreamError], Awaitable[UpstreamError]],
        finished: Callable[[], None],
    ):
        self.status = reply.status
        self.headers = [pair for pair in reply.headers if not pair[0].startswith(b"access-control-")]
        self._reply, self._explained, self._finished = reply, explained, finished
        self._open = True

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._reply.chunks():
                yield chunk
        except UpstreamError as error:
            raise await self._explained(error) from error
        finally:
            self._end()

    async def read(self) -> bytes:
        try:
            return await self._reply.read()
        except UpstreamError as error:
            raise await self._explained(error) from error
        finally:
            self._end()

    async def close(self) -> None:
        self._end()
        await self._reply.close()

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._finished()
