"""What tests need of the files that ship with the package."""

from __future__ import annotations

from importlib.resources import files

import pytest

needs_cold_start = pytest.mark.skipif(
    not files("polyroute.data").joinpath("cold_start.npz").is_file(),
    reason="no src/polyroute/data/cold_start.npz: make it with python -m polyroute.recipes.cold_start",
)
