"""Threads that share a loop over experts: each product runs on one core, and no core waits within a product.

Small matrix products gain little from several threads inside each; one expert a thread keeps them all busy. The
threads are started at the first use, and again in a forked process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

_crew: ThreadPoolExecutor | None = None
_size = 0


def _forget() -> None:
    global _crew, _size
    _crew, _size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # threads do not survive a fork


def _alone() -> None:
    torch.set_num_threads(1)  # of this thread; the others keep theirs


def _hired(size: int) -> ThreadPoolExecutor:
    global _crew, _size
    if _crew is None or _size != size:
        if _crew is not None:
            _crew.shutdown(wait=False)
        _crew, _size = ThreadPoolExecutor(size, "polyroute-expert", initializer=_alone), size
        together = Barrier(size)
        for started in [_crew.submit(together.wait) for _ in range(size)]:
            started.result()
        torch.set_num_threads(torch.get_num_threads())  # what threads to come take over from the last who set it
    return _crew


def share(work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], size: int) -> None:
    """Call work(*job) for every job, on `size` threads that take the next one when they are free.

    The order of the jobs is the order of their start; they must not depend on each other. The first error is raised
    after all threads have stopped.
    """
    queue = iter(list(jobs))  # next() of a list's iterator is atomic

    def run() -> None:
        with torch.no_grad():
            for job in queue:
                work(*job)

    for done in [_hired(size).submit(run) for _ in range(size)]:
        done.result()
