"""Every example runs as a user would run it, and stays short enough to read."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
EXTRAS = {
    "ask_gateway": ("openai", "pyarrow", "uvicorn", "wordllama"),
    "learning_loop": ("msgspec",),
    "train_moe": ("torch", "matplotlib"),
}
ARGUMENTS = {"train_moe": ("--seconds", "2", "--out")}  # and a folder for what it writes
QUICK = {  # example -> what its output has to say
    "first_decision": ("difficult      -> large", "only candidate allowed"),
    "own_router": ("95 % interval",),
    "own_policy": ("bar at 0.5", "{'tiny': 10, 'middle': 10}"),
    "frontier": ("random mix", "oracle"),
    "saved_router": ("without a prior: No estimate for 'model-new'", "model-new  0.50"),
    "bandit": ("thompson", "oracle"),
    "budget": ("USD per request",),
    "cascade": ("rung 2 of 2",),
    "ask_gateway": ("auto:cheap -> terse", "auto:best  -> wordy", "'accepted': True"),
    "learning_loop": ("1500 decisions, each with its propensity, [0.05 0.85]", "still ignorant"),
    "train_moe": ("2,087,552 parameters", "nats a character; arithmetic", "layer 3: load", "wrote load.png"),
}
NEEDS_DATA = {"demo_replay", "demo_cascade"}  # `make demo-replay`, `make demo-cascade`


@pytest.mark.parametrize("name", QUICK)
def test_it_runs(name, tmp_path, tmp_path_factory):
    for package in EXTRAS.get(name, ()):
        pytest.importorskip(package)
    written = tmp_path_factory.mktemp("written")
    arguments = [*ARGUMENTS[name], str(written)] if name in ARGUMENTS else []
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in QUICK[name]:
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"
    assert bool(list(written.iterdir())) == (name in ARGUMENTS)


def test_every_example_is_run_and_short():
    found = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert set(found) == set(QUICK) | NEEDS_DATA
    for name in QUICK:
        assert len(found[name].splitlines()) <= 60, name
        told = ast.get_docstring(ast.parse(found[name]))
        assert told is not None
        assert f"python examples/{name}.py" in told, f"{name} says how to run it"
