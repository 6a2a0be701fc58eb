"""Serving the gateway under uvicorn's server: uvloop, our own protocol, and a few lines that say where it listens."""

from __future__ import annotations

import gc
import sys
from typing import TextIO

import uvicorn

from polyroute.gateway.app import Gateway
from polyroute.gateway.front import Front

SWITCH_S = 0.001  # how long the journal's thread may keep the interpreter while the loop has work; Python's is 0.005
GRACE_S = 20  # seconds in-flight requests may take after SIGTERM


class Server(uvicorn.Server):
    """Says where it listens once it does, with a line that can be copied and run."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, say: TextIO):
        super().__init__(config)
        self.gateway, self.say = gateway, say

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if not self.started:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(greeting(self.gateway, f"http://{host}:{port}", await self.states()), file=self.say, flush=True)

    async def states(self) -> dict[str, str]:
        """What each backend says of itself, in one line."""
        found = {name: await backend.status() for name, backend in self.gateway.backends.items()}
        return {name: status.state + (f" ({status.detail})" if status.detail else "") for name, status in found.items()}


def greeting(gateway: Gateway, url: str, states: dict[str, str]) -> str:
    """What the operator reads at the start."""
    names = ", ".join(gateway.brain.policies)
    body = '\'{"model":"auto","messages":[{"role":"user","content":"What is 2+2?"}]}\''
    lines = [f"polyroute listens on {url} (page: {url}/, models: {names})"]
    lines += [f"  {name:<28} {state}" for name, state in states.items()]
    lines += [f"  {name}: {how}" for name, how in gateway.brain.measured.items()]
    lines += [f"  warning: {warning}" for warning in gateway.warnings]
    lines.append(f"try: curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d {body}")
    return "\n".join(lines)


def settings(gateway: Gateway, host: str, port: int, log_level: str = "warning") -> uvicorn.Config:
    """uvicorn as the gateway runs on it: our own protocol, nothing logged for each request."""
    return uvicorn.Config(
        gateway, host=host, port=port, log_level=log_level, access_log=False, server_header=False, ws="none",
        http=Front, lifespan="on", proxy_headers=False, timeout_graceful_shutdown=GRACE_S, timeout_keep_alive=75,
        backlog=4096,
    )  # fmt: skip


def serve(gateway: Gateway, host: str, port: int, log_level: str = "warning", say: TextIO = sys.stdout) -> bool:
    """Serve until SIGINT or SIGTERM; True when it had started."""
    server = Server(settings(gateway, host, port, log_level), gateway, say)
    gc.collect()
    gc.freeze()  # what lives as long as the server is not looked through again and again
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(SWITCH_S)
    server.run()
    return bool(server.started)
