"""Power of d choices, drawn or hashed: look at few queues, join one. Request scale only: plain ints, one at a time."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

from polyroute.errors import ConfigError
from polyroute.types import Rng


def least_loaded(load: Sequence[float], among: Sequence[int]) -> int:
    """The column of smallest load among those given; the first of several tied."""
    return min(among, key=load.__getitem__)


def draw(num_columns: int, d: int, rng: Rng) -> list[int]:
    """d different columns out of num_columns, in random order; all of them if there are no more than d."""
    order = list(range(num_columns))
    for i in range(min(d, num_columns)):
        j = i + int(rng.random() * (num_columns - i))
        order[i], order[j] = order[j], order[i]
    return order[:d]


def power_of_d(load: Sequence[float], rng: Rng, *, d: int = 2) -> int:
    """A column for one arrival: the least loaded of d drawn without repeats.

    load: [m] queue lengths, or any cost of joining, one number a column. Nearly as even as looking at every queue,
    at the price of d looks, and it does not herd when the numbers are stale. d = 1 is random, d >= m joins the
    shortest of all; ties are broken at random.
    Raises: ConfigError if there is no column or d is below 1.
    Source: Mitzenmacher 2001, The power of two choices in randomized load balancing (doi:10.1109/71.963420).
    """
    if len(load) == 0:
        raise ConfigError("load", got=load, expected="the load of at least one column")
    if d < 1:
        raise ConfigError("d", got=d, expected="1 or more columns to look at")
    return least_loaded(load, draw(len(load), d, rng))


def ring_hash(key: object, salt: int = 0) -> int:
    """64 bits of a key's repr, the same in every process (Python's own `hash` of a text is not)."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8, salt=salt.to_bytes(8, "big")).digest())


def ring_of(names: Sequence[str], *, salt: int = 0, points: int = 64) -> list[tuple[int, str]]:
    """A ring for consistent hashing: each name owns the arcs before its points, so few keys move with one name.

    Rings of different salt are independent: the owners of one key on two rings are two choices made by hashing.
    Source: Karger et al. 1997 (doi:10.1145/258533.258660).
    """
    if points < 1:
        raise ConfigError("points", got=points, expected="1 or more points a name")
    return sorted((ring_hash((name, k), salt), name) for name in names for k in range(points))


def owners(ring: Sequence[tuple[int, str]], key: int, count: int = 1) -> list[str]:
    """The first `count` different names at or after a key (64 bits); all there are if they are fewer."""
    at, found = bisect_left(ring, (key, "")), list[str]()
    for k in range(len(ring)):
        name = ring[(at + k) % len(ring)][1]
        if name not in found:
            found.append(name)
            if len(found) == count:
                break
    return found
