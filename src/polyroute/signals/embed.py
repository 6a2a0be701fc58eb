"""Featurisers by name: texts in, one vector a text out. The name is saved with every fitted router."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

from polyroute.errors import MissingExtraError, ModelFileError, UnknownNameError
from polyroute.protocols import Featuriser

# name -> where it is made. A change that changes a vector needs a new name: old routers were fitted on the old one.
FEATURISERS: dict[str, str] = {
    "static-1": "polyroute.signals.static:Static",
    "minilm-1": "polyroute.signals.minilm:MiniLM",
    "minilm-surface-1": "polyroute.signals.minilm:MiniLMSurface",
}


def featuriser(name: str = "static-1") -> Featuriser:
    """The featuriser of this name, loaded once a process; safe to call from several threads.

    `static-1`: token vectors and surface features, about 0.1 ms a short text, comes with [embed] and [gateway].
    `minilm-1`: a small transformer, about 6 ms a short text, comes with [minilm].
    `minilm-surface-1`: the same beside the surface features; the better of the two.
    Raises: UnknownNameError; MissingExtraError where its package is not installed.
    """
    if name not in FEATURISERS:
        raise UnknownNameError("featuriser", name, FEATURISERS)
    return load(FEATURISERS[name])


@functools.cache
def load(where: str) -> Featuriser:
    """The featuriser made by `module:Class`."""
    module, _, attribute = where.partition(":")
    made: Featuriser = getattr(importlib.import_module(module), attribute)()
    return made


def is_quick(featuriser: Featuriser, text: str) -> bool:
    """Does this featuriser take less than a millisecond for this text, so that an event loop may call it at once?

    Longer texts, and every text of a featuriser that does not say, belong in a thread.
    """
    quick = getattr(featuriser, "is_quick", None)
    return bool(quick(text)) if quick is not None else False


def package_file(package: str, path: str, extra: str) -> Path:
    """A data file inside an installed package, found without importing the package.

    Raises: MissingExtraError, or ModelFileError where the package has no such file.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(package, extra)
    file = Path(next(iter(found.submodule_search_locations))) / path
    if not file.is_file():
        raise ModelFileError(f"{package}: expected a file {path} in it, got none. Reinstall polyroute[{extra}].")
    return file
