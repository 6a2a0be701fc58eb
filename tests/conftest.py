"""Shared by all tests: the array libraries every kernel must work on, and where recorded outcomes lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def to_numpy(values: Any) -> Any:
    return np.asarray(values)


def to_torch(values: Any) -> Any:
    return pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'").as_tensor(np.asarray(values))


def to_strict(values: Any) -> Any:
    return pytest.importorskip("array_api_strict").asarray(np.asarray(values))


# Makers of arrays: `@pytest.mark.parametrize("asarray", BACKENDS)`. Results go back through np.asarray.
BACKENDS = [
    pytest.param(to_numpy, id="numpy"),
    pytest.param(to_torch, id="torch", marks=pytest.mark.torch),
    pytest.param(to_strict, id="strict"),
]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of recorded outcomes, or a skip that says how to get it."""
    folder = Path(os.environ.get("POLYROUTE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "outcomes").is_dir():
        pytest.skip(f"no recorded outcomes in {folder}: set POLYROUTE_DATA to the folder that holds outcomes/")
    return folder
