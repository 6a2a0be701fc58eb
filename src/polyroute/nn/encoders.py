"""Request routers that need gradients: they train in torch, are kept as numpy arrays and predict in numpy.

GraphEncoder passes messages from queries to models, TwoTower learns where query and profile meet, and
CrossAttention says which domains a text is about. N queries, M models, D width of an embedding, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from polyroute.errors import ConfigError, MissingExtraError, NotFittedError, OutcomesError
from polyroute.kernels.attend import Attended, sparse_attention
from polyroute.routers.centroids import expected_head
from polyroute.routers.profiles import Profiles
from polyroute.routers.rows import columns, embeddings, extend, nothing, observed, unit_rows
from polyroute.types import Array, Candidate, Estimate, Estimates, Outcomes, Query

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("torch", "nn") from None


def descend(
    parts: nn.ParameterDict, loss: Callable[[], Tensor], steps: int, rate: float, decay: float = 0.0,
    check: Callable[[], Tensor] | None = None, every: int = 5,
) -> None:  # fmt: skip
    """AdamW on the loss, in place. With `check`, a loss on rows held out, the parts end as when that was least."""
    optimiser = torch.optim.AdamW(parts.parameters(), lr=rate, weight_decay=decay)
    least, best = float("inf"), None
    for step in range(steps):
        if check is not None and step % every == 0:
            with torch.no_grad():
                value = float(check())
            if value < least:
                least, best = value, {name: part.detach().clone() for name, part in parts.items()}
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    if best is not None:
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(best[name])


def apart(n: int, seed: int) -> Array:
    """[n] bool: a fifth of the rows, held out to tell when to stop; none of fewer than ten."""
    held: Array = np.random.default_rng(seed).permutation(n) < (n // 5 if n >= 10 else 0)
    return held


def parameters(shapes: Mapping[str, tuple[int, ...]], seed: int) -> nn.ParameterDict:
    """Gaussian of std 1 / sqrt(first dimension) for matrices, zeros for vectors."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator) / shape[0] ** 0.5 if len(shape) > 1 else torch.zeros(shape)
        for name, shape in shapes.items()
    }
    return nn.ParameterDict({name: nn.Parameter(tensor) for name, tensor in made.items()})


def as_arrays(parts: nn.ParameterDict) -> dict[str, Array]:
    return {name: tensor.detach().numpy().copy() for name, tensor in parts.items()}


def tensor(array: Array) -> Tensor:
    return torch.as_tensor(np.asarray(array, dtype=np.float32))


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def estimate(logit: Array, count: Array) -> Estimates:
    """Quality from logits [n, m]. The std is that of as many outcomes as the model has, at most 100: no posterior."""
    mean = 1 / (1 + np.exp(-logit))
    return {"quality": Estimate(mean, np.sqrt(mean * (1 - mean) / (np.minimum(count, 100.0) + 2.0)))}


class GraphEncoder:
    """GraphRouter's network: two rounds of messages from the queries a model answered to the model.

    A message is relu(W x) scaled by the edge (how much better than expected the model did) and one unscaled; a model
    takes the mean of its messages. The query side is not propagated. Training hides edges: each step a random
    share `visible` makes the model nodes and the others are foretold (binary cross-entropy on the score itself). A
    fifth of the queries tells when to stop.
    Since messages start at queries only, what a model has received is a sum: `update` adds edges without training.
    Source: GraphRouter (arXiv:2410.03834); the score is the target here in place of the argmax, mean aggregation in
    place of batch normalisation.
    """

    def __init__(
        self, metric: str = "quality", hidden: int = 64, visible: float = 0.3, steps: int = 50, rate: float = 2e-3,
        decay: float = 0.1, kappa: float = 20.0, seed: int = 0,
    ):  # fmt: skip
        if not 0 < visible < 1:
            raise ConfigError("visible", got=visible, expected="a share of the edges, between 0 and 1")
        if hidden < 1 or steps < 1:
            raise ConfigError("hidden", got=(hidden, steps), expected="a width and a number of steps, 1 or more")
        self.metric, self.hidden, self.visible, self.steps = metric, hidden, visible, steps
        self.rate, self.decay, self.kappa, self.seed = rate, decay, kappa, seed
        self.weights_: dict[str, Array] | None = None

    def fit(self, outcomes: Outcomes) -> Self:
        y, seen = observed(outcomes, self.metric)
        if not seen.any():
            raise OutcomesError(f"values[{self.metric!r}]: expected at least one outcome to learn from, got none.")
        x = unit_rows(embeddings(outcomes.queries)).astype(float)
        self.mean_ = x.mean(axis=0)
        self.expected_ = expected_head(self._phi(x), y, seen)
        edge = np.where(seen, y - (self._phi(x) @ self.expected_)[:, None], 0.0)
        d, h = x.shape[1], self.hidden
        shapes = {"query": (d, h), "bias": (h,), "message": (d, h), "gain": (h, h), "node": (h, h), "skip": (h, h)}
        parts = parameters(shapes | {"strength": (1,)}, self.seed)
        x_ND, y_NM, edge_NM, seen_NM = (tensor(a) for a in (self._in(x), y, edge, seen))
        prior_N = tensor(np.clip(self._phi(x) @ self.expected_, 0.02, 0.98))
        rng, held_N1 = np.random.default_rng(self.seed), tensor(apart(len(x), self.seed))[:, None]

        def foretold(shown_NM: Tensor, hidden_NM: Tensor) -> Tensor:
            sums_MH = (edge_NM * shown_NM).T @ torch.relu(x_ND @ parts["message"])
            node_MH = self._node(sums_MH, shown_NM.sum(0), parts, torch.relu)
            level_M = (edge_NM * shown_NM).sum(0) / (shown_NM.sum(0) + self.kappa)
            logit_NM = torch.logit(prior_N)[:, None] + 4 * level_M
            logit_NM = logit_NM + (x_ND @ parts["query"] + parts["bias"]) @ node_MH.T
            each = F.binary_cross_entropy_with_logits(logit_NM, y_NM.clamp(0, 1), reduction="none")
            return (each * hidden_NM).sum() / hidden_NM.sum().clamp(min=1.0)

        def loss() -> Tensor:
            shown_NM = seen_NM * tensor(rng.random(seen.shape) < self.visible) * (1 - held_N1)
            return foretold(shown_NM, (seen_NM - shown_NM) * (1 - held_N1))

        def check() -> Tensor:
            return foretold(seen_NM * (1 - held_N1), seen_NM * held_N1)

        descend(parts, loss, self.steps, self.rate, self.decay, check if held_N1.any() else None)
        self.weights_ = as_arrays(parts)
        self.column_: dict[str, int] = {}
        self.sums_ = np.zeros((0, h + 2))
        self._add(outcomes, x, edge, seen)
        return self

    def _phi(self, x: Array) -> Array:
        return np.hstack([np.ones((len(x), 1)), x - self.mean_])

    def _in(self, x: Array) -> Array:
        """Centred embeddings of about unit spread."""
        return (x - self.mean_) * len(self.mean_) ** 0.5

    def _node(self, sums: Any, count: Any, parts: Any, active: Callable[[Any], Any]) -> Any:
        """[M, H] model nodes after two rounds. The same text for torch and numpy."""
        mean = sums / (count[:, None] + self.kappa)
        first = active(mean @ parts["gain"])
        return (first @ parts["node"] + mean @ parts["skip"]) * (0.5 + parts["strength"])

    def _add(self, outcomes: Outcomes, x: Array, edge: Array, seen: Array) -> None:
        assert self.weights_ is not None
        at = extend(self.column_, outcomes.pool)
        sums = np.zeros((len(self.column_), self.hidden + 2))
        sums[: len(self.sums_)] = self.sums_
        message = relu(self._in(x) @ self.weights_["message"])
        np.add.at(sums, at, np.column_stack([edge.T @ message, edge.sum(axis=0), seen.sum(axis=0)]))
        self.sums_ = sums

    def update(self, outcomes: Outcomes) -> None:
        """Add edges; the network stays."""
        if self.weights_ is None:
            raise NotFittedError(self)
        y, seen = observed(outcomes, self.metric)
        x = unit_rows(embeddings(outcomes.queries, len(self.mean_))).astype(float)
        self._add(outcomes, x, np.where(seen, y - (self._phi(x) @ self.expected_)[:, None], 0.0), seen)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.weights_ is None:
            raise NotFittedError(self)
        at = columns({c: j for c, j in self.column_.items() if self.sums_[j, -1]}, pool).index
        x = unit_rows(embeddings(queries, len(self.mean_))).astype(float)
        if not len(x) or not len(pool):
            return nothing(self.metric, len(x), len(pool))
        sums = self.sums_[at]
        node = self._node(sums[:, :-2], sums[:, -1], self.weights_, relu)
        prior = np.clip(self._phi(x) @ self.expected_, 0.02, 0.98)[:, None]
        logit = np.log(prior / (1 - prior)) + 4 * sums[:, -2] / (sums[:, -1] + self.kappa)
        logit = logit + (self._in(x) @ self.weights_["query"] + self.weights_["bias"]) @ node.T
        return estimate(logit, sums[:, -1])

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.weights_ is None:
            raise NotFittedError(self)
        names = ("metric", "hidden", "visible", "steps", "rate", "decay", "kappa", "seed")
        params = {name: getattr(self, name) for name in names} | {"candidates": list(self.column_)}
        return params, {"sums": self.sums_, "mean": self.mean_, "expected": self.expected_, **self.weights_}

    @classmethod
    def from_state(cls, params: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        router = cls(**{name: value for name, value in params.items() if name != "candidates"})
        router.column_ = {name: j for j, name in enumerate(params["candidates"])}
        held = {name: np.asarray(array) for name, array in arrays.items()}
        router.sums_, router.mean_, router.expected_ = (held.pop(name) for name in ("sums", "mean", "expected"))
        router.weights_ = held
        return router


class TwoTower:
    """A tower for queries and one for profiles; quality is where they meet, so a newcomer needs a profile only.

    Each tower is a layer of relu and one more; the logit is their product plus the model's level and the query's
    difficulty. Loss: binary cross-entropy, plus a hinge of `margin` between the best and the worst model of a query
    where models differ; a fifth of the queries tells when to stop. Profiles are built from the training queries
    (routers/profiles) and scaled to unit spread.
    Source: the two-tower consumer of RouteProfile (margin 0.2); the level and the cross-entropy are added here.
    """

    def __init__(
        self, profiles: Profiles, texts: dict[str, str] | None = None, vectors: dict[str, Array] | None = None, *,
        hidden: int = 64, margin: float = 0.2, steps: int = 100, rate: float = 2e-3, decay: float = 0.1, seed: int = 0,
    ):  # fmt: skip
        self.profiles, self.texts, self.vectors = profiles, texts, vectors
        self.hidden, self.margin, self.steps, self.rate = hidden, margin, steps, rate
        self.decay, self.seed = decay, seed
        self.weights_: dict[str, Array] | None = None

    def fit(self, outcomes: Outcomes) -> Self:
        self.profiles.fit(outcomes, self.texts, self.vectors)
        y, seen = observed(outcomes, "quality")
        x = self._rows(outcomes.queries)
        ids = [c.id for c in outcomes.pool]
        self.scale_ = 1 / max(float(self.profiles.vectors(ids).std()), 1e-9)
        d, h = x.shape[1], self.hidden
        shapes = {"query": (d, h), "query_bias": (h,), "meet": (h, h)}
        shapes |= {"profile": (d, h), "profile_bias": (h,), "other": (h, h), "difficulty": (h, 1)}
        parts = parameters(shapes, self.seed)
        x_ND, y_NM, seen_NM, p_MD, level_M = (tensor(a) for a in (x, y, seen, *self._inputs(ids)))
        best_N, worst_N = (y - 2 * ~seen).argmax(axis=1), (y + 2 * ~seen).argmin(axis=1)
        rows = np.arange(len(x))
        differ_N = tensor((y[rows, best_N] > y[rows, worst_N]) & (seen.sum(axis=1) > 1))

        held_N = tensor(apart(len(x), self.seed))

        def apart_from(count_N: Tensor) -> Tensor:
            logit_NM = self._meet(x_ND, p_MD, level_M, parts, torch.relu)
            each = F.binary_cross_entropy_with_logits(logit_NM, y_NM.clamp(0, 1), reduction="none")
            hinge_N = torch.relu(self.margin - logit_NM[rows, best_N] + logit_NM[rows, worst_N])
            weight_NM, pair_N = seen_NM * count_N[:, None], differ_N * count_N
            told = (each * weight_NM).sum() / weight_NM.sum().clamp(min=1.0)
            return told + 0.25 * (hinge_N * pair_N).sum() / pair_N.sum().clamp(min=1.0)

        check = (lambda: apart_from(held_N)) if held_N.any() else None
        descend(parts, lambda: apart_from(1 - held_N), self.steps, self.rate, self.decay, check)
        self.weights_ = as_arrays(parts)
        return self

    def _rows(self, queries: Sequence[Query]) -> Array:
        """[N, D] centred embeddings of about unit spread."""
        mean = self.profiles.mean_
        return (unit_rows(embeddings(queries, len(mean))).astype(float) - mean) * len(mean) ** 0.5

    def _inputs(self, ids: Sequence[str]) -> tuple[Array, Array]:
        """Scaled profiles [M, D] and the logit of each model's level [M]."""
        level = np.clip(self.profiles.levels(ids), 0.02, 0.98)
        return self.profiles.vectors(ids) * self.scale_, np.log(level / (1 - level))

    @staticmethod
    def _meet(x: Any, p: Any, level: Any, parts: Any, active: Callable[[Any], Any]) -> Any:
        """[N, M] logits. The same text for torch and numpy."""
        query = active(x @ parts["query"] + parts["query_bias"])
        profile = active(p @ parts["profile"] + parts["profile_bias"]) @ parts["other"]
        return 0.1 * (query @ parts["meet"]) @ profile.T + level + query @ parts["difficulty"]

    def extend(self, outcomes: Outcomes, text: str = "", vector: Array | None = None) -> None:
        """Add the one candidate of `outcomes` by a profile; the towers stay."""
        if self.weights_ is None:
            raise NotFittedError(self)
        self.profiles.extend(outcomes, text, vector)

    def predict(self, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
        if self.weights_ is None:
            raise NotFittedError(self)
        x = self._rows(queries)
        if not len(x) or not len(pool):
            return nothing("quality", len(x), len(pool))
        ids = [c.id for c in pool]
        count = np.array([self.profiles.history_[c].count if c in self.profiles.history_ else 0 for c in ids])
        return estimate(self._meet(x, *self._inputs(ids), self.weights_, relu), count)


class CrossAttention:
    """Which domains a text is about: its tokens attend to k of the domains' prototypes (SCAR).

    Prototypes are the mean tokens of each domain; queries and keys are learned on labelled texts with cross-entropy on
    the mean attention, plus a penalty `balance` x domains x sum of load x mean attention, against one domain for all.
    Source: the sparse cross-attention router of GEM; every formula is (inferred).
    """

    def __init__(self, k: int = 2, width: int = 16, balance: float = 0.01, steps: int = 200, rate: float = 1e-2,
                 seed: int = 0):  # fmt: skip
        if k < 1:
            raise ConfigError("k", got=k, expected="a number of domains, 1 or more")
        self.k, self.width, self.balance, self.steps, self.rate, self.seed = k, width, balance, steps, rate, seed
        self.weights_: dict[str, Array] | None = None

    def fit(self, tokens: Array, domain: Array) -> Self:
        """tokens: [N, T, D] float. domain: [N] int, 0 to P - 1, each present."""
        tokens, domain = np.asarray(tokens, dtype=float), np.asarray(domain)
        self.prototypes_ = np.stack([tokens[domain == p].mean(axis=(0, 1)) for p in range(int(domain.max()) + 1)])
        d, num = tokens.shape[2], len(self.prototypes_)
        parts = parameters({"query": (d, self.width), "key": (d, self.width), "value": (d, d)}, self.seed)
        x_NTD, p_PD, y_N = tensor(tokens), tensor(self.prototypes_), torch.as_tensor(domain)

        def loss() -> Tensor:
            scores_NTP = x_NTD @ parts["query"] @ (p_PD @ parts["key"]).T / self.width**0.5
            top = scores_NTP.topk(min(self.k, num), dim=-1)
            weight_NTP = torch.full_like(scores_NTP, -torch.inf).scatter(-1, top.indices, top.values).softmax(-1)
            share_NP = weight_NTP.mean(1)
            load_P = F.one_hot(share_NP.argmax(1), num).float().mean(0)
            penalty = self.balance * num * (load_P * share_NP.mean(0)).sum()
            return F.nll_loss(torch.log(share_NP + 1e-2), y_N) + penalty

        descend(parts, loss, self.steps, self.rate)
        self.weights_ = as_arrays(parts)
        return self

    def attend(self, tokens: Array, k: int | None = None) -> Attended:
        """One text's tokens [T, D] against the prototypes; k: other than fitted. output [T, D] is tokens + A P V."""
        if self.weights_ is None:
            raise NotFittedError(self)
        keys, values = self.prototypes_ @ self.weights_["key"], self.prototypes_ @ self.weights_["value"]
        found = sparse_attention(np.asarray(tokens, float) @ self.weights_["query"], keys, values, k or self.k)
        return found._replace(output=tokens + found.output)

    def route(self, texts: Array, k: int | None = None) -> Array:
        """[N, P] routing weight of each domain for texts [N, T, D]; rows sum to 1."""
        return np.stack([self.attend(tokens, k).share for tokens in texts])
