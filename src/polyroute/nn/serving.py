"""Batches of requests that want the same expert, where the expert of a request is known before the model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from polyroute.errors import ConfigError


class ExpertBatch(NamedTuple):
    """Requests that run together."""

    requests: tuple[Hashable, ...]
    experts: tuple[int, ...]  # of each request

    @property
    def distinct(self) -> int:
        """Experts that must be loaded for this batch."""
        return len(set(self.experts))


class ExpertBatcher:
    """A queue for each expert; a batch is filled from the longest queue, then from the next, so that few experts load.

    size: requests of a batch. patience: batches after which a waiting request's queue goes first, whatever its length;
    None: never, and a rare expert may starve. Ties: who waits longest.
    Source: Read-ME (arXiv:2410.19123); patience is not in the publication.
    """

    def __init__(self, size: int, *, patience: int | None = 32):
        if size < 1:
            raise ConfigError("size", got=size, expected="1 request or more")
        if patience is not None and patience < 1:
            raise ConfigError("patience", got=patience, expected="1 batch or more, or None")
        self.size, self.patience = size, patience
        self.batches = 0
        self._added = 0
        self._queues: dict[
            int, deque[tuple[int, int, Hashable]]
        ] = {}  # expert -> (number, batches at arrival, request)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, request: Hashable, expert: int) -> None:
        """A request whose next token goes to this expert."""
        self._queues.setdefault(expert, deque()).append((self._added, self.batches, request))
        self._added += 1

    def waiting(self) -> dict[int, int]:
        """Requests in each queue that is not empty: what to prefetch next, longest first."""
        return {expert: len(self._queues[expert]) for expert in self._order()}

    def next(self) -> ExpertBatch | None:
        """The next batch, at most `size` requests; None when nobody waits."""
        requests: list[Hashable] = []
        experts: list[int] = []
        for expert in self._order():
            queue = self._queues[expert]
            while queue and len(requests) < self.size:
                requests.append(queue.popleft()[2])
                experts.append(expert)
            if not queue:
                del self._queues[expert]
            if len(requests) == self.size:
                break
        if not requests:
            return None
        self.batches += 1
        return ExpertBatch(tuple(requests), tuple(experts))

    def _order(self) -> list[int]:
        """Queues in the order they are served: those out of patience by arrival, then by length."""

        def rank(expert: int) -> tuple[bool, int, int]:
            queue = self._queues[expert]
            number, since, _ = queue[0]
            late = self.patience is not None and self.batches - since >= self.patience
            return (not late, 0 if late else -len(queue), number)

        return sorted(self._queues, key=rank)
