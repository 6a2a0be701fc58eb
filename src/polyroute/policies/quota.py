"""So many answers of a tier for each user and time; after that its smaller stand-in."""

from __future__ import annotations

from collections.abc import Mapping

from polyroute.errors import ConfigError


class Quota:
    """A bucket of answers for each user and tier, refilled evenly.

    limits: tier -> answers a window. fallback: tier -> who serves when its bucket is empty; a stand-in may have a limit
    and a stand-in of its own. A tier without a limit is free. `take` spends; a switch that a quota caused is not the
    user's wish, so say so to whoever learns from switches.
    """

    def __init__(self, limits: Mapping[str, int], fallback: Mapping[str, str], window_s: float = 86_400.0):
        for tier, limit in limits.items():
            if limit < 0:
                raise ConfigError(f"limits.{tier}", got=limit, expected="a number of answers, 0 or more")
            seen = [tier]
            while seen[-1] in limits:
                if seen[-1] not in fallback:
                    raise ConfigError(f"fallback.{seen[-1]}", got=None, expected="who serves when the limit is reached")
                if fallback[seen[-1]] in seen:
                    raise ConfigError(f"fallback.{seen[-1]}", got=fallback[seen[-1]], expected="no circle of stand-ins")
                seen.append(fallback[seen[-1]])
        if not window_s > 0:
            raise ConfigError("window_s", got=window_s, expected="seconds, above 0")
        self.limits, self.fallback, self.window_s = dict(limits), dict(fallback), window_s
        self.left_: dict[tuple[str, str], tuple[float, float]] = {}  # user, tier -> answers left, when (s)

    def take(self, user: str, tier: str, now_s: float) -> str:
        """Who serves: the tier itself while its bucket holds an answer, else its stand-in, and so on."""
        while tier in self.limits:
            limit = self.limits[tier]
            left, then = self.left_.get((user, tier), (float(limit), now_s))
            left = min(float(limit), left + limit * max(0.0, now_s - then) / self.window_s)
            if left >= 1:
                self.left_[user, tier] = (left - 1, now_s)
                return tier
            self.left_[user, tier] = (left, now_s)
            tier = self.fallback[tier]
        return tier
