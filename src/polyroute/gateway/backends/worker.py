"""The child process that runs one local model: python -m polyroute.gateway.backends.worker --file MODEL.gguf

It speaks the few words of supervise.py: the key comes in on stdin, the address goes out on stdout, and the end of
stdin is the end of the worker. llama.cpp's own output goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from io import FileIO
from typing import Any, BinaryIO

PROMPT_CACHE_MB = 256  # memory for the prompts of earlier requests; llama.cpp's default is 8 GB
ERRORS_ONLY = 1  # llama.cpp's level; it never logs prompts at this one
NICENESS = 5  # the gateway answers first where both want the same core


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m polyroute.gateway.backends.worker", description=__doc__)
    options.add_argument("--file", required=True, help="a GGUF model file")
    options.add_argument("--alias", required=True, help="the model's name in answers")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--slots", type=int, default=4, help="requests served at once")
    options.add_argument("--context", type=int, default=4096, help="tokens per request, prompt and answer together")
    options.add_argument("--chat-template", default="", help="Jinja text; default: the model file's own")
    options.add_argument("--port", type=int, default=0, help="default: a free one")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    say = take_stdout()
    die_with_parent()
    key = read_key(sys.stdin.buffer)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        server = serve(args, key)
    except ImportError:
        return tell(say, {"error": "xllamacpp is not installed; it comes with: pip install 'polyroute[local]'"})
    except RuntimeError as problem:
        return tell(say, {"error": f"llama.cpp cannot load {args.file}: {problem}"})
    tell(say, {"address": server.listening_address})
    wait_for_end(sys.stdin.buffer)
    os._exit(0)  # the model needs no farewell, and unloading it takes time


def take_stdout() -> FileIO:
    """The pipe to the parent, for us alone: whatever else prints to stdout goes to stderr."""
    say = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return say


def die_with_parent() -> None:
    """Ask Linux to kill us with the parent: loading a model blocks the thread that watches stdin."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def read_key(stdin: BinaryIO) -> str:
    """The bearer token callers must show; none given: none asked."""
    line = stdin.readline()
    return str(json.loads(line).get("api_key", "")) if line.strip() else ""


def tell(say: FileIO, words: dict[str, str]) -> int:
    """One line to the parent. Returns the exit code that goes with it."""
    say.write(json.dumps(words).encode() + b"\n")
    say.close()
    return 1 if "error" in words else 0


def serve(args: argparse.Namespace, key: str) -> Any:
    """llama.cpp's server, loaded and listening on loopback."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = args.file, {args.alias}
    params.hostnames, params.port = ["127.0.0.1"], args.port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.n_parallel = args.slots
    params.n_ctx = args.context * args.slots  # llama.cpp divides it among the slots
    params.fit_params = False  # what was asked for, or an error
    params.cache_ram_mib = PROMPT_CACHE_MB
    params.sse_ping_interval = 0  # keep-alive is the gateway's matter
    params.endpoint_metrics, params.endpoint_slots, params.ui = True, False, False
    params.offline, params.verbosity = True, ERRORS_ONLY
    if key:
        params.api_keys = [key]
    if args.chat_template:
        params.chat_template = args.chat_template
    return xllamacpp.Server(params)


def wait_for_end(stdin: BinaryIO) -> None:
    """Until the parent closes our stdin or dies; SIGTERM ends the process by itself."""
    over = threading.Event()

    def watch() -> None:
        while stdin.read(4096):
            pass
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    over.wait()


if __name__ == "__main__":
    sys.exit(main())
