"""How a long fetch shows that it lives: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 24


class Progress:
    """Shows bytes of a known total on a text stream, usually stderr.

    `at` is told how many bytes there are, `say` prints a line of its own, `done` ends the bar. every_s: seconds
    between plain lines; a terminal is drawn ten times a second.
    """

    def __init__(
        self,
        stream: TextIO,
        title: str,
        total: int,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream, self.title, self.total, self.clock = stream, title, total, clock
        self.bar = stream.isatty()
        self.every_s = 0.1 if self.bar else every_s
        self._shown_at = self._began_at = clock()
        self._began_with: int | None = None
        self._drawn = 0  # characters of the bar on the screen

    def at(self, done: int) -> None:
        now = self.clock()
        if self._began_with is None or done < self._began_with:
            self._began_with, self._began_at = done, now
        if now - self._shown_at >= self.every_s:
            self._shown_at = now
            self._show(self._line(done, now))

    def say(self, text: str) -> None:
        self._wipe()
        print(text, file=self.stream, flush=True)

    def done(self) -> None:
        self._wipe()

    def _line(self, done: int, now: float) -> str:
        share = done / self.total if self.total else 1.0
        rate = (done - (self._began_with or 0)) / max(now - self._began_at, 1e-9)
        text = f"{self.title} {share:4.0%} {done / 1e6:.0f} of {self.total / 1e6:.0f} MB"
        if self.bar:
            filled = int(share * WIDTH)
            text = f"{self.title} [{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%} {done / 1e6:.0f} MB"
        if rate > 0:
            text += f", {rate / 1e6:.1f} MB/s, {(self.total - done) / rate:.0f} s left"
        return text

    def _show(self, line: str) -> None:
        if not self.bar:
            print(line, file=self.stream, flush=True)
            return
        print("\r" + line.ljust(self._drawn), end="", file=self.stream, flush=True)
        self._drawn = len(line)

    def _wipe(self) -> None:
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=self.stream, flush=True)
            self._drawn = 0
