"""Progress of long work on stderr: one line that is redrawn on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Steps:
    """Counts steps of a known total. `with Steps("embedding", 2127) as steps: steps.at(64)`.

    Nothing is shown of work that ends within `after_s` seconds; then a terminal is redrawn ten times a second and
    anything else gets a line every `every_s` seconds.
    """

    def __init__(
        self, title: str, total: int, *, stream: TextIO | None = None, after_s: float = 1.0, every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.title, self.total, self.clock = title, total, clock
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.every_s = 0.1 if self.terminal else every_s
        self.next_at = clock() + after_s
        self.width = 0

    def at(self, done: int, note: str = "") -> None:
        """So many steps are done. note: what is going on."""
        now = self.clock()
        if now < self.next_at:
            return
        self.next_at = now + self.every_s
        line = f"{self.title}: {done:,} of {self.total:,}" + (f"  {note}" if note else "")
        if self.terminal:
            print("\r" + line.ljust(self.width), end="", file=self.stream, flush=True)
            self.width = len(line)
        else:
            print(line, file=self.stream, flush=True)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.terminal and self.width:
            print("\r" + " " * self.width + "\r", end="", file=self.stream, flush=True)


def say(text: str) -> None:
    """A line of its own on stderr."""
    print(text, file=sys.stderr, flush=True)
