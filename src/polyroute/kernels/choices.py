"""Power of d choices: look at a few queues, join the shortest. Request scale only: plain ints, one at a time."""

from __future__ import annotations

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
