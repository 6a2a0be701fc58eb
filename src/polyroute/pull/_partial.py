"""The beginning of a model file: bytes in order, from whichever source, under a name that is not the model's."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from polyroute.data.catalogue import LocalModel
from polyroute.errors import ModelFileError

CHUNK = 1 << 20


class SourceError(Exception):
    """One source cannot give the file; the next is tried. The message is one line for the user."""


class Partial:
    """A file that grows at its end, with the SHA-256 of what it holds.

    Opening keeps what an earlier run left: pieces that the catalogue knows by hash are checked, a piece that is
    wrong ends the trusted beginning. `size` is what it holds, `boundary` the end of its last whole piece.
    """

    def __init__(self, model: LocalModel, path: Path, moved: Callable[[int], None]):
        self.model, self.path, self.moved = model, path, moved  # moved: told the size whenever it changes
        self._file: BinaryIO = path.open("a+b")
        if path.stat().st_size > model.bytes:
            self._file.truncate(0)
        self.recheck()

    def recheck(self) -> None:
        """Read again what is there and find the end of the last whole piece."""
        self._file.flush()
        self._hash = hashlib.sha256()
        self._at_boundary, self.boundary, self.size = self._hash.copy(), 0, 0
        self._file.seek(0)
        for part in self.model.parts:
            own = hashlib.sha256()
            got = self._take(part.bytes, own)
            if got == part.bytes:
                if own.hexdigest() != part.sha256:
                    return self.back_to_boundary()
                self._mark()
            elif got < part.bytes:
                break
        self._take(self.model.bytes - self.size, hashlib.sha256())  # without pieces only the end can tell
        self.moved(self.size)

    def _take(self, count: int, own: hashlib._Hash) -> int:
        """Hash up to `count` bytes more of the file; returns how many there were."""
        got = 0
        while got < count and (data := self._file.read(min(CHUNK, count - got))):
            self._hash.update(data)
            own.update(data)
            got += len(data)
        self.size += got
        return got

    def _mark(self) -> None:
        self._at_boundary, self.boundary = self._hash.copy(), self.size

    def append(self, data: bytes) -> None:
        """Raises: ModelFileError when the disk is full, and what is there stays."""
        try:
            self._file.write(data)
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_space(self.model, self.path.parent, self.model.bytes - self.size) from problem
            raise
        self._hash.update(data)
        self.size += len(data)
        self.moved(self.size)

    def end_piece(self, sha256: str, digest: str) -> bool:
        """Keep the piece just appended if it is the expected one, else drop it."""
        if sha256 != digest:
            self.back_to_boundary()
            return False
        self._file.flush()
        self._mark()
        return True

    def back_to_boundary(self) -> None:
        """Drop everything after the last whole piece."""
        self._cut(self.boundary)
        self._hash = self._at_boundary.copy()

    def clear(self) -> None:
        """Start over."""
        self._cut(0)
        self._hash, self.boundary = hashlib.sha256(), 0
        self._at_boundary = self._hash.copy()

    def _cut(self, size: int) -> None:
        self._file.flush()
        self._file.truncate(size)
        self.size = size
        self.moved(size)

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def finish(self, target: Path) -> None:
        """Make it the model's file in one step, durable before it is visible."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.path, target)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Leave the beginning for another run; an empty one goes."""
        if not self._file.closed:
            self._file.close()
            if self.size == 0:
                self.path.unlink(missing_ok=True)


def no_space(model: LocalModel, folder: Path, needed: int) -> ModelFileError:
    return ModelFileError(
        f"No space for {model.file} in {folder}: expected {needed / 1e6:.0f} MB free. Free some, or set "
        f"POLYROUTE_MODELS to a folder on another disk, and pull again: what is fetched is kept."
    )
