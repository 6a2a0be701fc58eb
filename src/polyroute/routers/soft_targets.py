"""How much each candidate should count for a query, learned from all that were right and not from one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, MissingExtraError, NotFittedError, OutcomesError, ShapeError
from polyroute.routers.heads import Features, features
from polyroute.routers.rows import check_shape, columns, embeddings, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

TARGETS = ("soft", "hard")


class SoftTargets:
    """Estimate `share`, 0..1: the weight of each candidate among those it was fitted with, by softmax regression.

    Targets are softmax(score / temperature) over the candidates that answered, so that all who were right share the
    credit and one who was right alone gets it all; the loss is their Kullback-Leibler divergence. targets: "hard" puts
    all on the first best instead. Rows where all did alike teach nothing and are left out. A share is a weight for a
    vote (flows/vote), not a quality; over part of the pool shares sum to less than 1.

    Fitted with answers, `weights` reads them too: who agrees with whom is an edge between two candidates, each with a
    learned strength [m, m]. That is what tells the strong one's errors. rank: directions of the embedding; l2, agree:
    penalties on them and on the edges, for a mean loss.
    Source: AgentRouter (arXiv:2510.05445) for the soft targets and the loss; its graph of named entities is left out,
    its edges between agents are the agreement edges here.
    """

    def __init__(
        self, metric: str = "quality", temperature: float = 0.2, rank: int = 8, l2: float = 0.1,
        agree: float = 0.003, targets: str = "soft",
    ):  # fmt: skip
        for name, value in (("temperature", temperature), ("l2", l2), ("agree", agree)):
            if not value > 0:
                raise ConfigError(name, got=value, expected="a number above 0")
        if rank < 0:
            raise ConfigError("rank", got=rank, expected="a number of directions, 0 or more")
        if targets not in TARGETS:
            raise ConfigError("targets", got=targets, expected="'soft' or 'hard'")
        self.metric, self.temperature, self.rank, self.l2 = metric, temperature, rank, l2
        self.agree, self.targets = agree, targets
        self.features_: Features | None = None

    def fit(self, outcomes: Outcomes, answers: Array | None = None) -> Self:
        """answers: [n, m] int, equal in a row where answers are equal, below 0 where there is none."""
        y, seen = observed(outcomes, self.metric)
        if not seen.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        x = unit_rows(embeddings(outcomes.queries))
        self.features_ = features(x[seen.any(axis=1)], min(self.rank, x.shape[1]), None)
        spread = self.features_(x, None)[:, 1:].std(axis=0)
        self.scale_ = np.append(1.0, 1 / np.maximum(spread, 1e-3))
        phi = self._phi(outcomes.queries)
        target = soft(y, seen, self.temperature) if self.targets == "soft" else hard(y, seen)
        low, high = np.where(seen, y, np.inf).min(axis=1), np.where(seen, y, -np.inf).max(axis=1)
        some = seen.any(axis=1) & (low < high)
        if not some.any():
            some = seen.any(axis=1)  # nothing tells them apart: equal shares
        penalty = np.append(1e-4, np.full(phi.shape[1] - 1, self.l2))
        m, kept = len(outcomes.pool), (phi[some], target[some], seen[some])
        self.before_ = solved(*kept, np.zeros((int(some.sum()), m, m)), penalty, None)[0]
        self.after_, self.edge_ = np.zeros_like(self.before_), np.zeros((m, m))
        self.reads_answers_ = answers is not None
        if answers is not None:
            alike = agreement(check_shape("answers", np.asarray(answers), seen.shape))
            self.after_, self.edge_ = solved(*kept, alike[some], penalty, self.agree)
        share = shares(phi[some] @ self.before_, seen[some])
        curve = (phi[some].T * (share * (1 - share)).sum(axis=1)) @ phi[some] / m
        self.posterior_ = np.linalg.inv(curve + np.diag(penalty * some.sum()) + 1e-3 * np.eye(len(penalty)))
        self.ids_ = [c.id for c in outcomes.pool]
        self.column_ = {c: j for j, c in enumerate(self.ids_) if seen[:, j].any()}
        self.known_ = seen.any(axis=0)
        return self

    def _phi(self, queries: Sequence[Query]) -> Array:
        assert self.features_ is not None
        x = unit_rows(embeddings(queries, len(self.features_.directions)))
        phi: Array = self.features_(x, None).astype(float) * self.scale_
        return phi

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        """Shares before anyone answered."""
        if self.features_ is None:
            raise NotFittedError(self)
        at, phi = columns(self.column_, pool).index, self._phi(queries)
        if not len(phi) or not len(pool):
            return nothing("share", len(phi), len(pool))
        share = shares(phi @ self.before_, np.tile(self.known_, (len(phi), 1)))[:, at]
        doubt = np.sqrt(np.vecdot(phi @ self.posterior_, phi))[:, None]
        return {"share": Estimate(share, share * (1 - share) * doubt + 1e-6)}

    def weights(self, queries: Sequence[Query], pool: Sequence[Candidate], answers: Array) -> Array:
        """[n, m] shares once all have answered, summing to 1 over those who did. answers: as in `fit`.

        Raises: OutcomesError if the router was fitted without answers.
        """
        if self.features_ is None:
            raise NotFittedError(self)
        if not self.reads_answers_:
            raise OutcomesError("weights: expected a router fitted with answers, got one fitted without: pass them.")
        at = columns(self.column_, pool).index
        answers = np.asarray(answers)
        if answers.shape != (len(queries), len(pool)):
            raise ShapeError("answers", got=answers.shape, expected=(len(queries), len(pool)))
        score = self._phi(queries) @ self.after_[:, at]
        score = score + (agreement(answers) * self.edge_[np.ix_(at, at)]).sum(axis=2)
        return shares(score, answers >= 0)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("metric", "temperature", "rank", "l2", "agree", "targets")
        params = {name: getattr(self, name) for name in names}
        params |= {"candidates": self.ids_, "reads_answers": self.reads_answers_}
        own = ("scale", "before", "after", "edge", "posterior", "known")
        arrays = {name: getattr(self, name + "_") for name in own}
        return params, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        own = ("candidates", "reads_answers")
        router = cls(**{name: value for name, value in params.items() if name not in own})
        router.ids_, router.reads_answers_ = list(params["candidates"]), bool(params["reads_answers"])
        held = {name: np.asarray(array) for name, array in arrays.items()}
        p, m = check_shape("directions", held["directions"], (None, None)).shape[1], len(router.ids_)
        shapes = {"offset": (p,), "scale": (p,), "before": (p, m), "after": (p, m), "edge": (m, m)}
        for name, shape in (shapes | {"posterior": (p, p), "known": (m,)}).items():
            check_shape(name, held[name], shape)
        router.features_ = Features(*(held[name] for name in Features._fields))
        router.scale_, router.before_, router.after_ = held["scale"], held["before"], held["after"]
        router.edge_, router.posterior_, router.known_ = held["edge"], held["posterior"], held["known"].astype(bool)
        router.column_ = {c: j for j, c in enumerate(router.ids_) if router.known_[j]}
        return router


def shares(score: Array, may: Array) -> Array:
    """[n, m] softmax over the columns that may take part; rows with none are zeros."""
    z = np.where(may, score, -np.inf)
    top = z.max(axis=1, keepdims=True)
    z = np.exp(z - np.where(np.isfinite(top), top, 0.0))
    share: Array = z / np.maximum(z.sum(axis=1, keepdims=True), 1e-300)
    return share


def soft(y: Array, seen: Array, temperature: float) -> Array:
    """[n, m] softmax(score / temperature) over what was seen."""
    return shares(y / temperature, seen)


def hard(y: Array, seen: Array) -> Array:
    """[n, m] 1 on the first of the best, 0 elsewhere."""
    best = np.where(seen, y, -np.inf).argmax(axis=1)
    one: Array = np.eye(y.shape[1])[best] * seen.any(axis=1, keepdims=True)
    return one


def agreement(answers: Array) -> Array:
    """[n, m, m] 1.0 where two different candidates gave the same answer. answers: [n, m] int, below 0 for none."""
    gave = answers >= 0
    alike = (answers[:, :, None] == answers[:, None, :]) & gave[:, :, None] & gave[:, None, :]
    alike &= ~np.eye(answers.shape[1], dtype=bool)
    return alike.astype(float)


def solved(
    phi: Array, target: Array, seen: Array, alike: Array, penalty: Array, agree: float | None
) -> tuple[Array, Array]:
    """(weights [p, m], edges [m, m]) of least mean divergence plus penalties. agree: None leaves the edges at 0."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "data") from None
    (n, p), m = phi.shape, target.shape[1]

    def loss(flat: Array) -> tuple[float, Array]:
        weight, edge = flat[: p * m].reshape(p, m), flat[p * m :].reshape(-1, m)
        score = phi @ weight if agree is None else phi @ weight + (alike * edge).sum(axis=2)
        share = shares(score, seen)
        value = -(target * np.log(np.maximum(share, 1e-300))).sum() / n + 0.5 * (penalty[:, None] * weight**2).sum()
        left = (share - target) / n
        slope = phi.T @ left + penalty[:, None] * weight
        if agree is None:
            return value, slope.ravel()
        edges = (alike * left[:, :, None]).sum(axis=0) + agree * edge
        return value + 0.5 * agree * (edge**2).sum(), np.concatenate([slope.ravel(), edges.ravel()])

    start = np.zeros(p * m + (0 if agree is None else m * m))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    return found[: p * m].reshape(p, m), found[p * m :].reshape(m, m) if agree is not None else np.zeros((m, m))
