"""The worker process, with a stand-in for llama.cpp: what it asks of it, and that it ends with its parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

STUB = """
import json, os, sys
class Bag: pass
class CommonParams:
    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = Bag(), Bag(), Bag()
class Server:
    def __init__(self, params):
        print("llama.cpp talks on stdout")
        os.write(1, b"even below Python\\n")
        if "broken" in params.model.path:
            raise RuntimeError("bad magic")
        flat = {k: v for k, v in vars(params).items() if isinstance(v, (int, str, bool, list))}
        flat |= {"file": params.model.path, "alias": sorted(params.model_alias),
                 "threads": [params.cpuparams.n_threads, params.cpuparams_batch.n_threads]}
        print("asked:" + json.dumps(flat), file=sys.stderr, flush=True)
        self.listening_address = "http://127.0.0.1:4321"
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "xllamacpp.py").write_text(STUB)
    started = []

    def run(*words: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "polyroute.gateway.backends.worker", "--alias", "toy", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_asks_for_the_context_per_request_and_says_where_it_listens(start):
    worker = start(
        "--file", "m.gguf", "--threads", "2", "--slots", "3", "--context", "1000", "--chat-template", "{{x}}"
    )
    worker.stdin.write(b'{"api_key": "secret"}\n')
    worker.stdin.flush()
    assert json.loads(worker.stdout.readline()) == {"address": "http://127.0.0.1:4321"}
    out, err = worker.communicate()  # closes stdin
    assert out == b""
    assert worker.returncode == 0
    asked = json.loads(next(line for line in err.splitlines() if line.startswith(b"asked:")).removeprefix(b"asked:"))
    assert (asked["n_ctx"], asked["n_parallel"], asked["threads"]) == (3000, 3, [2, 2])
    assert (asked["file"], asked["alias"], asked["api_keys"]) == ("m.gguf", ["toy"], ["secret"])
    assert (asked["chat_template"], asked["hostnames"], asked["sse_ping_interval"]) == ("{{x}}", ["127.0.0.1"], 0)
    assert asked["endpoint_slots"] is False
    assert b"even below Python" in err


def test_a_model_that_cannot_be_loaded_is_told_in_one_line(start):
    out, _ = (worker := start("--file", "broken.gguf")).communicate(b"\n")
    assert json.loads(out) == {"error": "llama.cpp cannot load broken.gguf: bad magic"}
    assert worker.returncode == 1


def test_the_end_of_stdin_before_the_key_ends_it_too(start):
    worker = start("--file", "m.gguf")
    worker.communicate(b"")
    assert worker.returncode == 0


def test_without_llama_cpp_it_names_the_extra(start, tmp_path):
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('no wheel')")
    out, _ = start("--file", "m.gguf").communicate(b"\n")
    assert "pip install 'polyroute[local]'" in json.loads(out)["error"]
