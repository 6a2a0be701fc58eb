"""Requests that come to their decision in one turn of the event loop are read and estimated together.

An array of sixteen rows costs little more than one of a single row, and what runs sixteen times on end finds the
processor's caches warm. Nobody waits for company: what has arrived when the turn ends makes the round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

MOST = 16  # of one round: to embed as many short texts keeps the loop for less than a millisecond


class Rounds(Generic[Q, A]):
    """Collects what is asked in one turn of the event loop and has it answered in one call.

    answer: questions -> for each of them, in order, its answer or the error it ends in. An error raised by `answer`
    itself is tried again question by question, so that one of them cannot spoil the others.
    """

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A | Exception]]):
        self.answer = answer
        self.waiting: list[tuple[Q, asyncio.Future[A]]] = []

    def ask(self, question: Q) -> asyncio.Future[A]:
        """The answer, at the end of this turn."""
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self.run)
        answer: asyncio.Future[A] = loop.create_future()
        self.waiting.append((question, answer))
        return answer

    def run(self) -> None:
        """Answer those who wait; the rest of a long round in the next turn."""
        some, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
        if self.waiting:
            asyncio.get_running_loop().call_soon(self.run)
        some = [pair for pair in some if not pair[1].done()]  # the others have left
        if not some:
            return
        try:
            found = self.answer([question for question, _ in some])
        except Exception:
            found = [self.alone(question) for question, _ in some]
        for (_, answer), one in zip(some, found, strict=True):
            if isinstance(one, Exception):
                answer.set_exception(one)
            else:
                answer.set_result(one)

    def alone(self, question: Q) -> A | Exception:
        try:
            return self.answer([question])[0]
        except Exception as error:
            return error
