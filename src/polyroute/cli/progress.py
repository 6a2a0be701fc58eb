"""Progress of long work on stderr: one line that is redrawn on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TextIO

TICK_S = 0.5  # between two looks at how long work without steps has taken


class Line:
    """One line of stderr. Nothing is shown of work that ends within `after_s` seconds; then a terminal is redrawn ten
    times a second and anything else gets a line every `every_s` seconds.
    """

    def __init__(
        self, *, stream: TextIO | None = None, after_s: float = 1.0, every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.clock = clock
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.every_s = 0.1 if self.terminal else every_s
        self.next_at = clock() + after_s
        self.width = 0

    def show(self, line: str) -> None:
        now = self.clock()
        if now < self.next_at:
            return
        self.next_at = now + self.every_s
        if self.terminal:
            print("\r" + line.ljust(self.width), end="", file=self.stream, flush=True)
            self.width = len(line)
        else:
            print(line, file=self.stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.terminal and self.width:
            print("\r" + " " * self.width + "\r", end="", file=self.stream, flush=True)


class Steps(Line):
    """Counts steps of a known total. `with Steps("embedding", 2127) as steps: steps.at(64)`."""

    def __init__(self, title: str, total: int, **how: Any):
        super().__init__(**how)
        self.title, self.total = title, total

    def at(self, done: int, note: str = "") -> None:
        """So many steps are done. note: what is going on."""
        self.show(f"{self.title}: {done:,} of {self.total:,}" + (f"  {note}" if note else ""))


@contextmanager
def elapsed(title: str, *, stream: TextIO | None = None, after_s: float = 1.0, every_s: float = 10.0) -> Iterator[None]:
    """Says how long work that has no steps has been going on: `with elapsed("fitting"): router.fit(table)`."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        with Line(stream=stream, after_s=after_s, every_s=every_s) as line:
            while not over.wait(TICK_S):
                line.show(f"{title}: {time.monotonic() - begun:.0f} s")

    teller = threading.Thread(target=tell, name="polyroute-elapsed", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def say(text: str) -> None:
    """A line of its own on stderr."""
    print(text, file=sys.stderr, flush=True)
