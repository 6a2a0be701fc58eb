"""One linear head a candidate, with a posterior: the router behind LinUCB, LinTS and per-model regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from polyroute.errors import ConfigError, NotFittedError, OutcomesError, ShapeError
from polyroute.protocols import Router
from polyroute.routers.heads import (
    Features,
    add_rows,
    features,
    logistic_posterior,
    logistic_rows,
    ridge_posterior,
    sigmoid,
)
from polyroute.routers.rows import (
    Columns,
    PerPool,
    check_shape,
    columns,
    embeddings,
    extend,
    nothing,
    observed,
    prompt_tokens,
    unit_rows,
    within,
)
from polyroute.routers.shrink import spread
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

CHUNK = 1024  # queries whose posteriors are worked out at once
BIAS = {"ridge": 1e-6, "logistic": 0.25}  # penalty of the constant: none to speak of; a logit of 0 give or take 2
BIAS_AFTER_PRIOR = {"ridge": 4.0, "logistic": 1.0}  # four outcomes as foretold; a logit as foretold give or take 1


class Linear:
    """Estimate a metric by one linear head per candidate on the embedding, with the std of its posterior.

    kind: "ridge" (any metric; the posterior scaled by the noise estimated from residuals) or "logistic" (a metric in
    0..1; Laplace posterior, std by the delta method); None: logistic for quality, ridge for the rest. l2: penalty per
    weight of the unit-length embedding. rank: keep the directions in which the training queries vary most; None: all
    (and all while there are fewer than twice as many queries). tokens: add prompt tokens, "linear" or "log".
    `update` equals fitting again on all rows for ridge (a rank-b update of the inverse Gram matrix; features stay as
    first fitted); for logistic it is online Laplace: the posterior so far is the prior of the new rows.
    With a `prior` (fitted beforehand) the heads learn what it leaves over, and it serves candidates never seen; then
    `fit` also takes a table without any outcome, for a router that learns all it knows while serving.
    Source: LinUCB, Li et al. 2010 (arXiv:1003.0146) for ridge; Chapelle and Li 2011 for online Laplace.
    """

    def __init__(
        self,
        metric: str = "quality",
        kind: str | None = None,
        l2: float = 10.0,
        rank: int | None = 64,
        tokens: str | None = None,
        prior: Router | None = None,
    ):
        self.kind = ("logistic" if metric == "quality" else "ridge") if kind is None else kind
        if self.kind not in BIAS:
            raise ConfigError("kind", got=kind, expected="'ridge' or 'logistic'")
        if not l2 > 0:
            raise ConfigError("l2", got=l2, expected="a penalty above 0")
        if rank is not None and rank < 0:
            raise ConfigError("rank", got=rank, expected="a number of directions, 0 or more, or None")
        if tokens not in (None, "linear", "log"):
            raise ConfigError("tokens", got=tokens, expected="'linear', 'log' or None")
        self.metric, self.l2, self.rank, self.tokens, self.prior = metric, l2, rank, tokens, prior
        self.features_: Features | None = None
        self._heads = PerPool(self._work_out)

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = self._observed(outcomes)
        some = seen.any(axis=1)
        if not some.any():
            if self.prior is None or not some.size or not outcomes.pool:
                raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to fit a line, got none.")
            some[:] = True  # queries alone give the features; the prior answers until outcomes come
        x = unit_rows(embeddings(outcomes.queries))
        scale = self._tokens(outcomes.queries)
        rank = self.rank if self.rank is not None and some.sum() >= 2 * self.rank else None
        self.features_ = features(x[some], rank, None if scale is None else scale[some])
        self._start()
        self._learn(outcomes, y, seen, fresh=True)
        return self

    def _start(self) -> None:
        """Heads for nobody yet, on the features as they stand."""
        assert self.features_ is not None
        p = self.features_.directions.shape[1]
        self.column_: dict[str, int] = {}
        self.weight_, self.score_ = np.zeros((p, 0)), np.zeros((p, 0))
        self.sums_, self.group_, self.posterior_ = np.zeros((3, 0)), np.zeros(0, np.intp), np.zeros((0, p, p))

    def update(self, outcomes: Outcomes) -> None:
        """Learn from more rows; see the class for what that equals. Candidates never met start from the penalty."""
        if self.features_ is None:
            raise NotFittedError(self)
        self._learn(outcomes, *self._observed(outcomes), fresh=False)

    def merge(self, other: Linear, base: Linear) -> None:
        """Take in what another replica learned since both were copies of `base`: as if it had been learned here.

        Exact for ridge, whose Gram matrices and scores are sums; the features, the penalty and the prior must be the
        same. Raises: ConfigError for logistic heads or other features; NotFittedError.
        """
        for replica in (self, other, base):
            if replica.features_ is None:
                raise NotFittedError(replica)
            if replica.kind != "ridge":
                raise ConfigError("kind", got=replica.kind, expected="'ridge': only its statistics are sums")
            alike = all(np.array_equal(a, b) for a, b in zip(self.features_ or (), replica.features_, strict=True))
            if not alike or (replica.metric, replica.l2) != (self.metric, self.l2):
                raise ConfigError("features", got="another fit's", expected="replicas of one fitted router")
        p = len(self.weight_)
        self._open([Candidate(name) for name in other.column_], p)
        start = np.diag(self._penalty(p))
        posterior = self.posterior_[self.group_]
        for name, j in self.column_.items():
            precision = np.linalg.inv(posterior[j])
            for replica, sign in ((other, 1.0), (base, -1.0)):
                if (i := replica.column_.get(name)) is not None:
                    precision += sign * (np.linalg.inv(replica.posterior_[replica.group_[i]]) - start)
                    self.score_[:, j] += sign * replica.score_[:, i]
                    self.sums_[:, j] += sign * replica.sums_[:, i]
            posterior[j] = np.linalg.inv((precision + precision.T) / 2)
            self.weight_[:, j] = posterior[j] @ self.score_[:, j]
        self.posterior_, self.group_ = posterior, np.arange(len(self.column_))
        self._heads.clear()

    def _observed(self, outcomes: Outcomes) -> tuple[Array, Array]:
        y, seen = observed(outcomes, self.metric)
        if self.kind == "logistic" and ((y < 0) | (y > 1)).any():
            raise OutcomesError(
                f"values[{self.metric!r}]: expected numbers in 0..1 for kind='logistic', got {y.min()} to {y.max()}. "
                f"Use kind='ridge'."
            )
        return y, seen

    def _penalty(self, p: int) -> Array:
        penalty = np.full(p, float(self.l2))
        penalty[0] = (BIAS if self.prior is None else BIAS_AFTER_PRIOR)[self.kind]
        return penalty

    def _tokens(self, queries: Sequence[Query]) -> Array | None:
        if self.tokens is None:
            return None
        count = prompt_tokens(queries)
        return np.log1p(count) if self.tokens == "log" else count

    def _phi(self, queries: Sequence[Query]) -> Array:
        assert self.features_ is not None
        x = embeddings(queries, len(self.features_.directions))
        return self.features_(unit_rows(x), self._tokens(queries))

    def _learn(self, outcomes: Outcomes, y: Array, seen: Array, *, fresh: bool) -> None:
        phi = self._phi(outcomes.queries).astype(float)
        believed = self._believed(outcomes.queries, outcomes.pool)
        at = self._open(outcomes.pool, phi.shape[1])
        learn = self._learn_logistic if self.kind == "logistic" else self._learn_ridge
        learn(phi, y, seen, believed, at, fresh)
        left = np.where(seen, y - (0.0 if self.kind == "logistic" else believed), 0.0)
        np.add.at(self.sums_.T, at, np.stack([left.sum(0), (left**2).sum(0), seen.sum(0)], axis=1))
        self._heads.clear()

    def _believed(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Array:
        """What the heads start from, [n, m]: the prior's estimate (ridge) or its logit (logistic), or 0."""
        if self.prior is None or not queries or not pool:
            return np.zeros((len(queries), len(pool)))
        return self._linked(self.prior.predict(queries, pool)[self.metric].mean)

    def _linked(self, mean: Array) -> Array:
        """A mean on the scale of the heads: as it is (ridge) or its logit (logistic)."""
        if self.kind == "ridge":
            return mean
        mean = np.clip(mean, 0.001, 0.999)
        return np.log(mean / (1 - mean))

    def _open(self, pool: Sequence[Candidate], p: int) -> Array:
        """Columns of the pool [m]; those never met get a head of zeros whose posterior is the penalty's."""
        at = extend(self.column_, pool)
        gained = len(self.column_) - self.weight_.shape[1]
        if gained:
            self.weight_, self.score_, self.sums_ = (
                np.pad(held, ((0, 0), (0, gained))) for held in (self.weight_, self.score_, self.sums_)
            )
            self.group_ = np.append(self.group_, np.full(gained, len(self.posterior_)))
            start = np.diag(1 / self._penalty(p))
            self.posterior_ = np.concatenate([self.posterior_, start[None]])
        return at

    def _learn_ridge(self, phi: Array, y: Array, seen: Array, believed: Array, at: Array, fresh: bool) -> None:
        left = np.where(seen, y - believed, 0.0)
        self.score_[:, at] += phi.T @ left
        rows = np.zeros((len(phi), len(self.column_)), dtype=bool)
        rows[:, at] = seen
        # Candidates that shared a posterior still share it if the new rows saw them alike.
        marks = np.vstack([self.group_[None], rows])
        kinds, group = np.unique(marks, axis=1, return_inverse=True)
        penalty, posterior = self._penalty(phi.shape[1]), []
        for kind in kinds.T:
            new = phi[kind[1:].astype(bool)]
            held = self.posterior_[kind[0]]
            posterior.append(ridge_posterior(new, penalty) if fresh else add_rows(held, new) if len(new) else held)
        self.posterior_, self.group_ = np.stack(posterior), group.reshape(-1)
        for g, held in enumerate(self.posterior_):
            self.weight_[:, self.group_ == g] = held @ self.score_[:, self.group_ == g]

    def _learn_logistic(self, phi: Array, y: Array, seen: Array, believed: Array, at: Array, fresh: bool) -> None:
        penalty = self._penalty(phi.shape[1])
        posterior = self.posterior_[self.group_]  # every candidate its own
        for i, j in enumerate(at):
            rows = seen[:, i]
            new, outcome, offset = phi[rows], y[rows, i], believed[rows, i]
            if fresh:
                self.weight_[:, j], posterior[j] = logistic_posterior(new, outcome, offset, penalty)
            elif len(new):
                self.weight_[:, j], posterior[j] = logistic_rows(self.weight_[:, j], posterior[j], new, outcome, offset)
        self.posterior_, self.group_ = posterior, np.arange(len(self.column_))

    def _noise(self) -> Array:
        """Variance of one outcome around its head, [columns]; 1 for logistic, whose posterior needs no scale."""
        if self.kind == "logistic":
            return np.ones(len(self.column_))
        p = len(self.weight_)
        penalty = self._penalty(p)
        fitted = (self.weight_ * self.score_).sum(axis=0) + penalty @ self.weight_**2
        used = p - (np.diagonal(self.posterior_, axis1=1, axis2=2) @ penalty)[self.group_]  # degrees of freedom
        total, square, count = self.sums_
        residual = np.maximum(square - fitted, 0.0)
        return (residual + spread(total, square, count, self.metric)) / (np.maximum(count - used, 0.0) + 1)

    def _work_out(self, pool: Sequence[Candidate]) -> _Heads:
        count = self.sums_[2]
        at = columns({name: j for name, j in self.column_.items() if count[j]}, pool, prior=self.prior)
        group = self.group_[at.index]
        group = group[:1] if (group == group[:1]).all() else group
        posterior = self.posterior_[group].astype(np.float32)
        return _Heads(at, self.weight_[:, at.index], posterior, np.sqrt(self._noise()[at.index]))

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.features_ is None:
            raise NotFittedError(self)
        heads, phi = self._heads(pool), self._phi(queries)
        if not len(phi) or not len(pool):
            return nothing(self.metric, len(phi), len(pool))
        mean, std = phi @ heads.weight, _std(phi, heads)
        before = None
        if self.prior is not None:
            before = self.prior.predict(queries, pool)[self.metric]
            mean = mean + self._linked(before.mean)
        if self.kind == "logistic":
            mean = sigmoid(mean)
            std *= mean - mean**2
        else:
            mean = within(self.metric, mean)
        if before is not None and heads.at.unseen is not None:
            mean = np.where(heads.at.unseen, before.mean, mean)
            std = std if before.std is None else np.where(heads.at.unseen, before.std, std)
        return {self.metric: Estimate(mean, std)}

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.features_ is None:
            raise NotFittedError(self)
        names = ("metric", "kind", "l2", "rank", "tokens", "prior")
        params = {name: getattr(self, name) for name in names} | {"candidates": list(self.column_)}
        arrays = {name: getattr(self, name + "_") for name in ("weight", "score", "sums", "group", "posterior")}
        return params, arrays | self.features_._asdict()

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        candidates = params["candidates"]
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(candidates)}
        m, held = len(candidates), {name: np.asarray(array) for name, array in arrays.items()}
        p = check_shape("directions", held["directions"], (None, None)).shape[1]
        shapes = {"offset": (p,), "tokens": (2,), "weight": (p, m), "score": (p, m), "sums": (3, m), "group": (m,)}
        for name, shape in (shapes | {"posterior": (None, p, p)}).items():
            check_shape(name, held[name], shape)
        if m and not (held["group"].min() >= 0 and held["group"].max() < len(held["posterior"])):
            raise ShapeError("posterior", got=held["posterior"].shape, expected=(int(held["group"].max()) + 1, p, p))
        router.features_ = Features(*(held[name] for name in Features._fields))
        router.weight_, router.score_, router.sums_ = held["weight"], held["score"], held["sums"]
        router.group_, router.posterior_ = held["group"], held["posterior"]
        return router


class _Heads(NamedTuple):
    """What one pool needs."""

    at: Columns
    weight: Array  # [p, m]
    posterior: Array  # [m, p, p] float32; [1, p, p] if all share one
    noise: Array  # [m] std of one outcome around its head, by which the posterior is scaled


def _std(phi: Array, heads: _Heads) -> Array:
    """Doubt about the heads' output, [n, m]: sqrt(phi' posterior phi) times the noise."""
    if len(phi) > CHUNK:
        return np.concatenate([_std(phi[start : start + CHUNK], heads) for start in range(0, len(phi), CHUNK)])
    variance = np.vecdot(phi @ heads.posterior, phi).T  # [n, m], or [n, 1] if all share a posterior
    std: Array = np.sqrt(np.maximum(variance, 0.0)) * heads.noise
    return std
