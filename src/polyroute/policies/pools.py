"""Bind a request to a pool by the tokens it may come to, and what a running workload may still do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from polyroute.errors import ConfigError

BYTES_PER_TOKEN = 4.0  # of English text; where a category has not been counted yet


class BytesPerToken:
    """Tokens of a text from its bytes, learned for each category as an exponential mean of what was counted."""

    def __init__(self, rate: float = 0.02, typical: float = BYTES_PER_TOKEN):
        if not 0 < rate <= 1:
            raise ConfigError("rate", got=rate, expected="a step in (0, 1]")
        if not typical > 0:
            raise ConfigError("typical", got=typical, expected="bytes per token, above 0")
        self.rate, self.typical = rate, typical
        self.bytes_: dict[Hashable, float] = {}  # category -> mean bytes of a request
        self.tokens_: dict[Hashable, float] = {}

    def update(self, num_bytes: float, num_tokens: float, category: Hashable = None) -> None:
        """Take in one request that was counted. Means of both, so that long texts weigh as they should."""
        if num_bytes <= 0 or num_tokens <= 0:
            return
        old_bytes, old_tokens = self.bytes_.get(category), self.tokens_.get(category)
        if old_bytes is None or old_tokens is None:
            self.bytes_[category], self.tokens_[category] = float(num_bytes), float(num_tokens)
            return
        self.bytes_[category] = old_bytes + self.rate * (num_bytes - old_bytes)
        self.tokens_[category] = old_tokens + self.rate * (num_tokens - old_tokens)

    def tokens(self, num_bytes: float, category: Hashable = None) -> float:
        """Expected tokens of a text."""
        if category in self.bytes_:
            return num_bytes * self.tokens_[category] / self.bytes_[category]
        return num_bytes / self.typical


class PoolSplit(NamedTuple):
    """Two pools of instances, one with short windows (many requests at once) and one with long ones."""

    boundary: float  # tokens, prompt and answer

    def pool(self, prompt_tokens: float, max_output: float) -> str:
        """`short` or `long`, by what the request may come to."""
        return "short" if prompt_tokens + max_output <= self.boundary else "long"

    def overflow(self, prompt_tokens: float, written: float) -> bool:
        """Whether a request in the short pool has outgrown its window: queue it again in the long one, never cut it."""
        return prompt_tokens + written > self.boundary


class BetaCounter:
    """How often something goes wrong for a (model, domain): Beta(1, 1) and the last `window` outcomes of each."""

    def __init__(self, window: int = 1000):
        if window < 1:
            raise ConfigError("window", got=window, expected="1 or more outcomes")
        self.window = window
        self._seen: dict[Hashable, deque[bool]] = {}
        self._bad: dict[Hashable, int] = {}

    def update(self, key: Hashable, failed: bool) -> None:
        seen = self._seen.setdefault(key, deque())
        if len(seen) == self.window:
            self._bad[key] -= seen.popleft()
        seen.append(failed)
        self._bad[key] = self._bad.get(key, 0) + failed

    def rate(self, key: Hashable) -> tuple[float, float]:
        """Mean and standard deviation of the failure rate; 0.5 and 0.289 before any outcome."""
        bad, count = self._bad.get(key, 0), len(self._seen.get(key, ()))
        a, b = 1.0 + bad, 1.0 + count - bad
        return a / (a + b), math.sqrt(a * b / (a + b + 1.0)) / (a + b)


def can_escalate(dispatched: int, completed: int, service_s: float, left_s: float) -> bool:
    """Whether a dearer model can still answer in time: its queue, at its service time, fits what is left."""
    return max(0, dispatched - completed) * service_s <= left_s


def spend_action(used_tokens: float, p90_tokens: float, steps: Mapping[float, str] | None = None) -> str:
    """What to do with a session by how far it is above the 90th percentile of its kind: go on, warn, cheaper, stop.

    steps: multiple of the percentile -> action. The paper names one threshold, three times; the steps around it are
    ours (inferred).
    """
    steps = {2.0: "warn", 3.0: "cheaper", 6.0: "stop"} if steps is None else steps
    if not p90_tokens > 0:
        raise ConfigError("p90_tokens", got=p90_tokens, expected="tokens, above 0")
    reached = [multiple for multiple in steps if used_tokens >= multiple * p90_tokens]
    return steps[max(reached)] if reached else "go on"
