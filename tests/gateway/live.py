"""A whole gateway on a free port, in a thread of its own, in front of scripted upstreams. For tests of the wire."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import uvicorn

from polyroute.gateway.app import Gateway
from polyroute.gateway.build import build
from polyroute.gateway.config import load_config
from polyroute.gateway.scripted import ScriptedUpstream
from polyroute.gateway.server import settings


@dataclass
class Live:
    """The gateway under test and how to talk to it."""

    gateway: Gateway
    port: int
    upstreams: Mapping[str, ScriptedUpstream] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        """One request; the answer and its whole body. body: bytes as they are, anything else as JSON."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply, content

    def chat(self, model: str = "auto", text: str = "What is 2+2?", headers: Any = None, **extra: Any) -> Any:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **extra}
        return self.call("POST", "/v1/chat/completions", body, headers)


CONFIG = """
[journal]
path = "{folder}/journal.sqlite"
[timeouts]
connect_s = 1.0
first_byte_s = 3.0
idle_s = 1.5
total_s = 10.0
"""
MODEL = """
[[models]]
id = "{id}"
url = "{url}/v1"
price_in = {price}
price_out = {price}
context = 8192
offers = ["tools", "json"]
ability = {{ general = {ability} }}
"""


@contextmanager
def serving(folder: Path, scripts: Mapping[str, Any], extra: str = "", head: str = "") -> Iterator[Live]:
    """Serve models whose answers are scripted. scripts: model id -> script or list of scripts; cheapest first."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    made: dict[str, Any] = {}

    async def main() -> None:
        upstreams: dict[str, ScriptedUpstream] = {}
        for name, script in scripts.items():
            several = script if isinstance(script, tuple) else (script,)
            upstreams[name] = await ScriptedUpstream(*several).__aenter__()
        text = head + CONFIG.format(folder=folder)
        for i, (name, upstream) in enumerate(upstreams.items()):
            text += MODEL.format(id=name, url=upstream.url, price=10.0**i, ability=float(i))
        path = folder / "polyroute.toml"
        path.write_text(text + extra, encoding="utf-8")
        made["stop"] = asyncio.Event()
        try:
            gateway = build(load_config(path))
            server = uvicorn.Server(settings(gateway, "127.0.0.1", 0, "error"))
            task = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            made["live"] = Live(gateway, server.servers[0].sockets[0].getsockname()[1], upstreams)
            ready.set()
            await made["stop"].wait()
            server.should_exit = True
            await task
        except BaseException as error:
            made["error"] = error
        finally:
            ready.set()
            for upstream in upstreams.values():
                await upstream.__aexit__()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait(30)
    if "error" in made:
        thread.join(5)
        loop.close()
        raise made["error"]
    try:
        yield made["live"]
    finally:
        loop.call_soon_threadsafe(made["stop"].set)
        thread.join(30)
        loop.close()
    if "error" in made:
        raise made["error"]
