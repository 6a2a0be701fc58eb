"""System 103, cloud and device: keep what the device is sure of, send the rest up, learn from what comes back.

Parts: policies/escalate (`UploadPolicy`), routers/linear (a ridge whose posterior says how far off a query is, updated
exactly). The paper adapts visual prompts by a teacher in the cloud; here the delta that comes back is the outcomes of
what was sent, in batches, and the device's ridge takes them in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.policies.escalate import UploadPolicy
from polyroute.routers.linear import Linear
from polyroute.types import Array, Outcomes, Rng

SMALL = 0.02  # quality; a margin below it is none


class Step(NamedTuple):
    """What happened to a stream of n queries."""

    choice: Array  # [n] column the device would use
    uploaded: Array  # [n] bool


def device(l2: float = 3.0, rank: int | None = None) -> Linear:
    """What runs on the device: a ridge per model on the embedding, to be fitted on the first tasks.

    rank: None keeps all directions, so that a query unlike the first tasks is seen to be one.
    """
    return Linear("quality", kind="ridge", l2=l2, rank=rank)


def doubt_of(mean: Array, std: Array) -> float:
    """How unsure a choice is: mean std [m] over the margin between the two highest means [m]."""
    two = np.sort(mean)[-2:]
    return float(np.mean(std) / (two[-1] - two[0] + SMALL))


def stream(
    learner: Linear, tasks: Outcomes, policy: UploadPolicy, rng: Rng, batch: int = 8, by_uncertainty: bool = True
) -> Step:
    """Run a fitted device over a stream; the outcomes of what it sends up come back every `batch` uploads.

    tasks: every model's outcome for each query, read only for those uploaded. by_uncertainty: False escalates at
    random with the same policy and share, for comparison.
    """
    n = len(tasks)
    choice, uploaded, waiting = np.zeros(n, np.intp), np.zeros(n, bool), []
    for i in range(n):
        mean, std = learner.predict(tasks.queries[i : i + 1], tasks.pool)["quality"]
        choice[i] = int(mean[0].argmax())
        doubt = doubt_of(mean[0], np.asarray(std)[0]) if by_uncertainty else float(rng.random())
        if policy.decide(doubt, rng):
            uploaded[i] = True
            waiting.append(i)
        if len(waiting) == batch:
            learner.update(tasks.take(np.array(waiting)))
            waiting.clear()
    return Step(choice, uploaded)
