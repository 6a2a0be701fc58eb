"""What `import polyroute` gives and what it costs, seen from a fresh process."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest

import polyroute
from tests.conftest import REPOSITORY

HEAVY = {
    "aiohttp", "asyncio", "http", "httptools", "matplotlib", "msgspec", "onnxruntime", "prometheus_client", "pyarrow",
    "pyreqwest", "safetensors", "scipy", "socket", "ssl", "tokenizers", "torch", "transformers", "uvicorn", "uvloop",
    "wordllama", "xllamacpp",
}  # fmt: skip
CORE = [
    "polyroute.types", "polyroute.errors", "polyroute.protocols", "polyroute.constraints", "polyroute.decide",
    "polyroute.kernels.topk", "polyroute.kernels.threshold", "polyroute.kernels.nucleus", "polyroute.kernels.sample",
    "polyroute.kernels.sinkhorn", "polyroute.kernels.dual", "polyroute.kernels.choices", "polyroute.flows.cascade",
    "polyroute.policies.greedy", "polyroute.policies.explore", "polyroute.policies.budget",
    "polyroute.policies.deadline",
]  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules of a fresh interpreter that ran `code`, beyond those it starts with."""
    script = (
        f"import sys; before = set(sys.modules)\n{code}\n"
        "import json; print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(json.loads(ran.stdout))


def test_importing_the_package_loads_next_to_nothing():
    loaded = loaded_by("import polyroute")
    assert "polyroute" in loaded
    assert not loaded & (HEAVY | {"numpy", "array_api_compat", "dataclasses"})


def test_using_the_whole_vocabulary_loads_numpy_and_nothing_heavier():
    loaded = loaded_by("from polyroute import *")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_no_core_module_loads_anything_heavy():
    loaded = loaded_by("\n".join(f"import {name}" for name in CORE))
    assert {"numpy", "array_api_compat"} <= loaded
    assert not loaded & HEAVY


def test_heavy_would_be_noticed():
    assert "asyncio" in loaded_by("import polyroute, asyncio") & HEAVY


def test_every_name_in_all_is_there_and_is_listed_once():
    assert len(set(polyroute.__all__)) == len(polyroute.__all__)
    for name in polyroute.__all__:
        assert getattr(polyroute, name) is not None
        assert name in dir(polyroute)


def test_a_name_is_the_same_thing_as_in_its_module():
    from polyroute.policies.greedy import Greedy
    from polyroute.types import Query

    assert polyroute.Query is Query
    assert polyroute.Greedy is Greedy


def test_the_names_a_type_checker_sees_are_those_in_all():
    tree = ast.parse((REPOSITORY / "src" / "polyroute" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {alias.name for line in block.body for alias in line.names} == set(polyroute.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'polyroute' has no attribute 'Manager'"):
        polyroute.Manager  # noqa: B018


def test_the_decision_is_a_module_whatever_was_imported_first():
    for first in ("from polyroute.decide import decide", "pass"):
        loaded_by(f"{first}\nimport polyroute.decide\nfrom polyroute import decide\nassert callable(decide.decide)")


def test_the_version_is_that_of_the_project():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', text, re.M).group(1) == polyroute.__version__
