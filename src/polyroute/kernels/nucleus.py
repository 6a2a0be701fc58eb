"""Top-p: the fewest candidates that hold a share p of the probability."""

from __future__ import annotations

from polyroute.errors import ConfigError
from polyroute.kernels import _xp
from polyroute.types import Array, Selection


def nucleus(probability: Array, p: float, *, k: int | None = None) -> Selection:
    """Keep the likeliest candidates until they hold `p` of the mass: sure rows take few, doubtful rows many.

    probability: [n, m] >= 0, rows sum to 1. p: in (0, 1]. k: at most so many, however much mass they hold.
    Returns index and weight [n, min(k, m)], likeliest first, with weight exactly 0 outside the nucleus, so that
    shapes never depend on values; the first is always inside. Weights are not normalised again.
    Source: Holtzman et al. 2019 (arXiv:1904.09751) for words; Huang et al. 2024 (arXiv:2403.07652) for experts.
    """
    if not 0.0 < p <= 1.0:
        raise ConfigError("p", got=p, expected="a share of the mass in (0, 1]")
    xp = _xp.namespace(probability)
    values, index = _xp.top_k(probability, probability.shape[-1] if k is None else k)
    before = xp.cumulative_sum(values, axis=-1) - values  # [n, k] mass of the likelier ones
    return Selection(index, xp.where(before < p, values, xp.zeros_like(values)))
