"""System 43, GreenServ: a bandit over a dozen one-hot features learns, from chosen answers alone, which model suits.

Context: a constant, the guessed task, the cluster and the complexity of the query; a ridge a model on it; optimism
(LinUCB), epsilon-greedy or Thompson sampling; models come and go while it runs. What differs from the paper: rewards
are centred by a prior of 0.5, so that a first success is not unbeatable; the std is in units of the measured noise, so
z here is alpha over that noise; the task comes from a classifier and never from the label of the query served; the
clusters are fitted beforehand; cost in USD stands where energy does; the ridge is 0.25 on contexts of length 1, where
the paper has 0.05 on ones and zeros (chosen by streams of seeds 100 to 103).
Parts: routers/context, routers/linear, routers/constant, policies/explore, offline/online.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyroute.routers.constant import Constant
from polyroute.routers.context import Contexts, Contextual
from polyroute.routers.linear import Linear
from polyroute.types import Array, Candidate, Outcomes, Query

RIDGE = 0.25
BELIEVED = Constant("quality", mean=0.5, std=0.5)  # of a model never tried: nothing is known of a number in 0..1


def contexts(queries: Sequence[Query], tasks: Sequence[str] | Array | None, *, num_clusters: int = 3) -> Contexts:
    """The encoder: one-hot task, cluster and complexity, learned from queries without outcomes."""
    return Contexts(num_clusters, (20.0, 30.0)).fit(queries, tasks)


def greenserv(
    encoder: Contexts, pool: Sequence[Candidate], queries: Sequence[Query], *, ridge: float = RIDGE
) -> Contextual:
    """The router before its first outcome, ready to `update`; serve it under policies.explore UCB(1.0).

    encoder: from `contexts`. queries: some to centre features on, without outcomes.
    """
    shape = (len(queries), len(pool))
    nothing = Outcomes(list(queries), pool, {"quality": np.full(shape, np.nan)}, np.zeros(shape, dtype=bool))
    router = Linear("quality", kind="ridge", l2=ridge, rank=None, prior=BELIEVED)
    return Contextual(router, encoder).fit(nothing)
