"""System 17, rewiring experts on the fly: at test time each layer learns one vector on its logits from the prompt.

Published settings: 5 steps with a rate of 0.05 on the prompt, then up to 128 tokens, and again; vectors start at 0 in
each sequence. Parts: Delta, put into a trained model for one sequence. Source: arXiv:2510.14853.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyroute.nn.rerouting import TestTimeRerouter


def rerouting(model: nn.Module, *, ratio: float = 1.0, prefer: str = "high_C", **settings: Any) -> TestTimeRerouter:
    """A rerouter of a trained model at the published settings: `rewired(context)`, `generate(ids, num_tokens)`.

    ratio: share of the layers that are fitted. prefer: "high_C" or "low_C". settings: further ones, as lr and steps.
    """
    from polyroute.nn.rerouting import TestTimeRerouter

    return TestTimeRerouter(model, ratio=ratio, prefer=prefer, **settings)
