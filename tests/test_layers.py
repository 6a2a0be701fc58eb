"""Who may import whom, read from the import statements: docs/concepts.md draws it, this file enforces it.

Imports inside functions, under TYPE_CHECKING and through import_module("...") count as edges too; only heavy
libraries may hide in functions. A new folder needs a line in LAYERS.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "polyroute"
VOCABULARY = {"errors", "types"}
CONTRACTS = VOCABULARY | {"protocols"}
WITH_KERNELS = CONTRACTS | {"kernels"}
PARTS = {"routers", "policies", "constraints", "flows"}
CORE = WITH_KERNELS | PARTS
UPPER = CORE | {"decide", "offline", "artefact", "signals", "data"}

# layer -> the layers it may import, besides itself
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "protocols": VOCABULARY,
    "kernels": CONTRACTS,
    **dict.fromkeys(PARTS, WITH_KERNELS),
    "decide": CORE,
    "artefact": CORE,
    "offline": CORE,
    "signals": CONTRACTS,
    "data": VOCABULARY,
    "pull": VOCABULARY | {"data"},
    "nn": WITH_KERNELS,
    "gateway": CORE | {"data", "decide", "artefact", "signals", "pull"},
    "recipes": UPPER,
    "proofs": UPPER | {"recipes"},
    "cli": UPPER | {"recipes", "proofs", "gateway", "pull"},
    "__main__": {"cli"},
    "__init__": CORE,
}
# The request routers that train in torch are routers first; the other networks know nothing of requests.
# A judge of answers is a fitted router shown texts, so that a flow can be run by whoever has answers.
FILE_EDGES = {"nn/encoders.py": {"routers"}, "flows/judging.py": {"routers", "signals"}}
DEFERRED_LAYERS = {"recipes": {"nn"}, "proofs": {"nn"}, "cli": {"nn"}}  # inside functions only
LAZY = {"__init__"}  # no edge at all while it is imported

# layer -> libraries it may import at the top of a file; everyone may import numpy
LIBRARIES: dict[str, set[str]] = {
    "nn": {"torch"},
    "gateway": {"httptools", "msgspec", "prometheus_client", "pyreqwest", "uvicorn", "uvloop"},
}
# layer -> libraries it may import inside a function, where that is not the usual three
DEFERRED_LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "kernels": {"torch"},  # of what is asked of a tensor that is already there
    "nn": {"matplotlib", "scipy", "safetensors", "transformers"},
    "signals": {"wordllama", "tokenizers", "safetensors", "onnxruntime"},
    "gateway": {"pyarrow", "xllamacpp"},
    "recipes": {"scipy", "pyarrow", "matplotlib", "torch"},
    "proofs": {"scipy", "pyarrow", "matplotlib", "torch"},
}
USUAL = {"scipy", "pyarrow", "matplotlib"}
ONE_FILE = {"array_api_compat": "kernels/_xp.py"}  # the only file that knows array libraries


class Import(NamedTuple):
    target: str  # dotted
    line: int
    deferred: bool  # inside a function, or for type checkers only


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import in a file of `package`, wherever it stands."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) + 1 - node.level]
                base = ".".join([*parent, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "polyroute" else [base]
            yield from (Import(name, node.lineno, deferred) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            texts = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from (Import(text, node.lineno, deferred) for text in texts)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for name, value in ast.iter_fields(node):
            typing_only = isinstance(node, ast.If) and name == "body" and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, inside or typing_only)

    return visit(ast.parse(source), False)


def layer_of(path: str) -> str:
    """kernels/topk.py -> kernels; decide.py -> decide."""
    return path.split("/")[0].removesuffix(".py")


def faults(path: str, source: str) -> list[str]:
    """What a file imports although its layer may not. path: relative to the package."""
    layer = layer_of(path)
    if layer not in LAYERS:
        return [f"{path}: no rule for layer {layer!r}; add it to LAYERS in tests/test_layers.py"]
    package = ".".join(["polyroute", *path.split("/")[:-1]])
    found = []
    for target, line, deferred in imports(source, package):
        root, _, rest = target.partition(".")
        if root == "polyroute":
            part = rest.split(".")[0]
            allowed = ours(layer, part, deferred) or part in FILE_EDGES.get(path, set())
        else:
            allowed = theirs(layer, root, deferred) or ONE_FILE.get(root) == path
        if not allowed:
            where = "in a function" if deferred else "at the top"
            found.append(f"{path}:{line}: {layer} may not import {target} {where}")
    return found


def ours(layer: str, target: str, deferred: bool) -> bool:
    if target in (layer, "__version__"):
        return True
    if layer in LAZY and not deferred:
        return False
    return target in LAYERS[layer] or (deferred and target in DEFERRED_LAYERS.get(layer, set()))


def theirs(layer: str, library: str, deferred: bool) -> bool:
    if library in sys.stdlib_module_names or library in LIBRARIES.get(layer, set()):
        return True
    if library == "numpy":
        return layer not in LAZY
    return deferred and library in DEFERRED_LIBRARIES.get(layer, USUAL)


@pytest.mark.parametrize("path", sorted(file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py")))
def test_every_file_keeps_to_its_layer(path):
    assert not (found := faults(path, (SOURCE / path).read_text(encoding="utf-8"))), "\n".join(found)


def test_the_rules_have_no_circles():
    def below(layer: str, above: tuple[str, ...]) -> None:
        assert layer not in above, " -> ".join([*above, layer])
        for lower in LAYERS[layer] | DEFERRED_LAYERS.get(layer, set()):
            below(lower, (*above, layer))

    for layer in LAYERS:
        below(layer, ())


def test_core_gateway_and_networks_are_apart():
    for layer in CORE | {"decide", "artefact", "offline", "signals", "data"}:
        assert not LAYERS[layer] & {"nn", "gateway", "recipes", "proofs", "cli"}
    assert "nn" not in LAYERS["gateway"]
    assert "gateway" not in LAYERS["nn"]
    assert not any("torch" in libraries for layer, libraries in LIBRARIES.items() if layer != "nn")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/topk.py", "from polyroute.routers.knn import KNN"),
        ("kernels/topk.py", "def f():\n    from polyroute.policies import greedy"),
        ("kernels/topk.py", "import array_api_compat"),
        ("routers/knn.py", "from polyroute import policies"),
        ("routers/knn.py", "from polyroute import Query"),
        ("routers/knn.py", "from ..policies.greedy import Greedy"),
        ("routers/knn.py", "from .. import decide"),
        ("routers/knn.py", "import scipy.linalg"),
        ("routers/knn.py", "def f():\n    import torch"),
        ("routers/knn.py", "try:\n    import pyarrow\nexcept ImportError:\n    pyarrow = None"),
        ("routers/knn.py", "class A:\n    import requests"),
        (
            "policies/greedy.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from polyroute.gateway import app",
        ),
        ("offline/replay.py", "from importlib import import_module\nimport_module('polyroute.nn.gates')"),
        ("gateway/app.py", "def f():\n    import polyroute.nn.gates"),
        ("nn/gates.py", "from polyroute.gateway.app import app"),
        ("nn/gates.py", "from polyroute.routers.rows import embeddings"),
        ("nn/encoders.py", "from polyroute.policies.greedy import Greedy"),
        ("recipes/moe.py", "from polyroute.nn.moe import MoE"),
        ("data/outcomes.py", "from polyroute.kernels.topk import top_k"),
        ("types.py", "from polyroute.protocols import Router"),
        ("__init__.py", "from polyroute.types import Query"),
        ("__init__.py", "import numpy"),
        ("helpers/text.py", "import re"),
    ],
)
def test_a_forbidden_edge_is_found(path, source):
    assert len(faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/_xp.py", "import array_api_compat\nimport numpy as np"),
        ("kernels/topk.py", "from . import _xp\nfrom polyroute.kernels import _xp\nfrom polyroute.types import Array"),
        ("routers/irt.py", "def f():\n    from scipy.optimize import minimize"),
        ("recipes/moe.py", "def f():\n    from polyroute.nn.moe import MoE"),
        ("gateway/app.py", "import asyncio\nimport msgspec\nfrom polyroute.decide import weigh"),
        ("cli/serve.py", "from polyroute import __version__\ndef f():\n    from polyroute.gateway import app"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from polyroute.types import Query"),
    ],
)
def test_an_allowed_edge_is_not(path, source):
    assert faults(path, source) == []
