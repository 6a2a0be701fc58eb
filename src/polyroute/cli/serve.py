"""polyroute serve: run the gateway."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from polyroute.cli.arguments import whole
from polyroute.cli.check import DEFAULT_PATH
from polyroute.errors import MissingExtraError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    p = commands.add_parser(
        "serve",
        help="run the gateway: an OpenAI-compatible server that routes",
        epilog="example: polyroute serve polyroute.toml --port 9000",
    )
    p.add_argument("config", nargs="?", type=Path, help="a file (default: ./polyroute.toml, else two local models)")
    p.add_argument("--host", help="address to listen on, overrides the file")
    p.add_argument("--port", type=whole(0, 65535), help="port to listen on, overrides the file; 0 takes a free one")
    p.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a decision is too small to share, and threads stall it
    try:
        from polyroute.gateway.build import build
        from polyroute.gateway.config import load_config
        from polyroute.gateway.server import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "uvicorn", "gateway") from None
    config = load_config(args.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None))
    config = config.listening(args.host, args.port)
    return 0 if serve(build(config), config.server.host, config.server.port, args.log_level) else 1
