"""Keep prompts near their cache without hotspots: two hashed homes a prefix, a longer key where it is hot."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.kernels.choices import owners, ring_hash, ring_of

SALTS = (1, 2)
Prefix = tuple[int, ...]  # ids of a prompt's leading blocks, each standing for everything up to it


class HotPrefixes:
    """How much of a prompt is hashed: its first block, and more of it while that much draws more than its share.

    A key is lengthened while its share of the last `window` requests is above 2 / instances: requests that only share
    a popular system prompt then part ways. It shrinks again when the share falls below 1 / instances.
    """

    def __init__(self, window: int = 1000, longest: int = 8):
        if window < 1 or longest < 1:
            raise ConfigError("window, longest", got=(window, longest), expected="1 or more each")
        self.window, self.longest = window, longest
        self._count: Counter[Prefix] = Counter()  # leading blocks -> requests in the window
        self._recent: deque[Prefix] = deque()
        self._split: set[Prefix] = set()  # keys that are too hot to stand for one

    def key(self, prefix: Prefix, instances: int) -> Prefix:
        """The leading blocks to hash for one request; also counts it. The empty prefix is a key of its own."""
        kept = prefix[: self.longest]
        self._recent.append(kept)
        for end in range(1, len(kept) + 1):
            self._count[kept[:end]] += 1
        if len(self._recent) > self.window:
            self._forget(self._recent.popleft())
        for end in range(1, len(kept) + 1):
            part, share = kept[:end], self._count[kept[:end]] / max(len(self._recent), self.window // 10)
            if share > 2 / instances:
                self._split.add(part)
            elif share < 1 / instances:
                self._split.discard(part)
            if part not in self._split:
                return part
        return kept

    def _forget(self, kept: Prefix) -> None:
        for end in range(1, len(kept) + 1):
            self._count[kept[:end]] -= 1
            if not self._count[kept[:end]]:
                del self._count[kept[:end]]
                self._split.discard(kept[:end])


class DualMap:
    """One of two hashed instances for each request: the one with more of its prompt cached, unless that would be late.

    Equal hits: the less loaded. The better cached one is left for the other when a first token there would take longer
    than `slo_s`. Instances come and go; only keys near them on their rings move.
    Source: DualMap, two consistent rings with independent salts; see `moves` for its rebalancing.
    """

    def __init__(self, instances: Sequence[str], *, slo_s: float = 5.0, hot: HotPrefixes | None = None):
        if not instances:
            raise ConfigError("instances", got=instances, expected="at least one id")
        if not slo_s > 0:
            raise ConfigError("slo_s", got=slo_s, expected="seconds, above 0")
        self.slo_s, self.hot = slo_s, HotPrefixes() if hot is None else hot
        self.instances = list(dict.fromkeys(instances))
        self._build()

    def _build(self) -> None:
        self.rings = tuple(ring_of(self.instances, salt=salt) for salt in SALTS)

    def add(self, name: str) -> None:
        """A new instance: it takes over the arcs before its points on both rings."""
        if name not in self.instances:
            self.instances.append(name)
            self._build()

    def remove(self, name: str) -> None:
        """Raises: UnknownNameError if there is no such instance."""
        if name not in self.instances:
            raise UnknownNameError("instance", name, self.instances)
        self.instances.remove(name)
        self._build()

    def pair(self, prefix: Prefix) -> tuple[str, str]:
        """The two instances of a request; one alone twice. Counts the request."""
        key = self.hot.key(prefix, len(self.instances))
        (first,), second = (owners(ring, ring_hash(key, salt), count)
                            for ring, salt, count in zip(self.rings, SALTS, (1, 2), strict=True))  # fmt: skip
        return first, next((name for name in second if name != first), first)

    def place(self, pair: tuple[str, str], cached: Callable[[str], float], first_token_s: Callable[[str], float],
              load: Callable[[str], float]) -> str:  # fmt: skip
        """One of a pair. cached: tokens found there; first_token_s: expected with queue and what must be read."""
        a, b = pair
        if a == b:
            return a
        by_load = a if load(a) <= load(b) else b
        if cached(a) == cached(b):
            return by_load
        near = a if cached(a) > cached(b) else b
        return near if first_token_s(near) <= self.slo_s else by_load


def moves(
    waiting: Sequence[int],
    here: str,
    partner: Callable[[int], str],
    first_token_s: Callable[[int, str], float],
    slo_s: float,
) -> list[tuple[int, str]]:
    """Which waiting requests of an overloaded instance go to their other home, in order of what they gain.

    first_token_s: (request, instance) -> expected seconds if it stood there. A request moves if it gains and keeps the
    limit there. One round; a caller that moves them one by one asks again for each.
    """
    gains = sorted(((first_token_s(r, here) - first_token_s(r, partner(r)), r) for r in waiting), reverse=True)
    return [
        (r, partner(r)) for gain, r in gains if gain > 0 and partner(r) != here and first_token_s(r, partner(r)) < slo_s
    ]
