"""System 103, cloud and device: keep what the device is sure of, send the rest up, learn from what comes back.

Parts: policies/escalate (`UploadPolicy`), routers/linear (a ridge, updated exactly). What is worth sending up is what
would make the device surer of its recent queries (V-optimal design, `Usefulness`), and not what it is least sure of:
that is an outlier, which tells nothing about the others. The paper adapts visual prompts by a teacher in the cloud;
here the delta that comes back is the outcomes of what was sent, in batches, and the device's ridge takes them in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.policies.escalate import UploadPolicy
from polyroute.routers.linear import Linear
from polyroute.routers.rows import embeddings, unit_rows
from polyroute.types import Array, Outcomes, Rng

SMALL = 0.02  # quality; a margin below it is none
AHEAD = 64  # queries whose estimates are worked out at once


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


class Usefulness:
    """How much knowing a query's outcome would lower the device's doubt about the queries it sees now.

    The mean reduction of a ridge's posterior variance over the last `recent` queries, were this one observed:
    mean over z of (z' V x)^2 / (1 + x' V x), V the posterior covariance in units of the noise. The same for all
    candidates, since each would be observed.
    """

    def __init__(self, first: Array, l2: float = 3.0, recent: int = 100):
        """first: [n, d] embeddings of what the device was fitted on."""
        x = unit_rows(first).astype(float)
        self.covariance = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
        self.recent = np.zeros((recent, x.shape[1]))  # a ring
        self.seen = 0

    def __call__(self, embedding: Array) -> float:
        """Of the next query, which is remembered. embedding: [d]."""
        x = unit_rows(embedding[None])[0].astype(float)
        self.recent[self.seen % len(self.recent)] = x
        self.seen += 1
        vx = self.covariance @ x
        return float(np.mean((self.recent[: self.seen] @ vx) ** 2) / (1 + x @ vx))

    def sent(self, embedding: Array) -> None:
        """Count a query as observed, before its outcomes are back: another one like it is worth less at once."""
        x = unit_rows(embedding[None])[0].astype(float)
        vx = self.covariance @ x
        self.covariance -= np.outer(vx, vx) / (1 + x @ vx)


def stream(
    learner: Linear,
    tasks: Outcomes,
    policy: UploadPolicy,
    rng: Rng,
    batch: int = 8,
    useful: Usefulness | None = None,
    chosen: Array | None = None,
) -> Step:
    """Run a fitted device over a stream; the outcomes of what it sends up come back every `batch` uploads.

    tasks: every model's outcome for each query, read only for those uploaded. useful: how uploads are chosen; None:
    by doubt of the choice (`doubt_of`). chosen: [n] bool, what to send up whatever the policy says, for comparison.
    """
    n = len(tasks)
    choice, uploaded, waiting = np.zeros(n, np.intp), np.zeros(n, bool), []
    x = embeddings(tasks.queries)
    start = stop = 0  # of what is foretold; an update makes it stale
    for i in range(n):
        if i >= stop:
            start, stop = i, min(i + AHEAD, n)
            mean, std = learner.predict(tasks.queries[start:stop], tasks.pool)["quality"]
        choice[i] = int(mean[i - start].argmax())
        if chosen is not None:
            send = bool(chosen[i])
        else:
            doubt = doubt_of(mean[i - start], np.asarray(std)[i - start]) if useful is None else useful(x[i])
            send = policy.decide(doubt, rng)
        if send:
            uploaded[i] = True
            waiting.append(i)
            if useful is not None:
                useful.sent(x[i])
        if len(waiting) == batch:
            learner.update(tasks.take(np.array(waiting)))
            waiting.clear()
            stop = i + 1
    return Step(choice, uploaded)
