"""Routers trained alone, after everything else: samples keep near the routes of similar samples that went well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.continuity import manifold_loss
from polyroute.nn.corpora import IGNORE, Batch
from polyroute.nn.losses import mean_shares, shares_TE
from polyroute.nn.moe import MoE
from polyroute.nn.moe import layers as layers_of
from polyroute.nn.routing import Routing
from polyroute.nn.testbed import Loss, adamw, seeded, task_loss


def route_layers(model: nn.Module, layers: int | Sequence[str]) -> list[MoE]:
    """Layers by their names, or the last -layers ones of the model (all where it has fewer)."""
    known = layers_of(model)
    if isinstance(layers, int):
        if layers >= 0 or not known:
            raise ConfigError("layers", got=layers, expected="a negative number, as -5, of a model with MoE layers")
        return list(known.values())[layers:]
    for name in layers:
        if name not in known:
            raise UnknownNameError("layer", name, known)
    return [known[name] for name in layers]


def sequence_routes(routings: Sequence[Routing], token: str = "last") -> Tensor:
    """Scores of each sequence [B, R], layer beside layer: of its last real token, or their mean. Passes gradients.

    All scores are taken, not only those of the chosen experts, which would give the others no gradient.
    """
    if token not in ("last", "mean"):
        raise ConfigError("token", got=token, expected='"last" or "mean"')
    found = []
    for routing in routings:
        num_sequences, length = routing.shape
        if token == "mean":
            found.append(mean_shares(routing, num_sequences))
            continue
        place_B = torch.full((num_sequences,), length - 1, device=routing.tok_N.device)
        if routing.valid_T is not None:
            real_BL = routing.valid_T.reshape(num_sequences, length)
            place_B = (real_BL * torch.arange(length, device=real_BL.device)).argmax(1)
        shares_BLE = shares_TE(routing).reshape(num_sequences, length, -1)
        found.append(shares_BLE[torch.arange(num_sequences, device=place_B.device), place_B])
    return torch.cat(found, -1)


@torch.no_grad()
def collect_routes(
    model: nn.Module, batches: Iterable[Batch], *, token: str = "last", layers: int | Sequence[str] = -5
) -> Tensor:
    """The routes of every sequence [N, R], nothing trained; see `sequence_routes`."""
    chosen, training = route_layers(model, layers), model.training
    model.eval()
    try:
        return torch.cat([_routes(model, chosen, batch, token) for batch in batches])
    finally:
        model.train(training)


def _routes(model: nn.Module, chosen: Sequence[MoE], batch: Batch, token: str) -> Tensor:
    model(batch.x)
    return sequence_routes([layer.routing for layer in chosen if layer.routing is not None], token)


def neighbours(embedding_NE: Tensor, good_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(ids, weights), both [N, K]: each sample's k nearest others among the good, rows of weights summing to 1.

    Weights fall as a Gaussian of the distance, whose width is the median distance to a neighbour (inferred).
    """
    good = good_N.nonzero().flatten()
    if len(good) <= k:
        raise ConfigError("good", got=f"{len(good)} samples that went well", expected=f"more than k = {k}")
    distance_NG = torch.cdist(embedding_NE.double(), embedding_NE[good].double())
    distance_NG[good, torch.arange(len(good))] = torch.inf  # not oneself
    near = distance_NG.topk(k, dim=1, largest=False)
    width = near.values.median().clamp(min=1e-12)
    return good[near.indices], (-near.values.square() / (2 * width.square())).softmax(1).float()


@dataclass(kw_only=True)
class ManifoldHistory:
    """What happened in a fit, a value an epoch."""

    good: int  # samples answered rightly before, the only neighbours there are
    loss: list[float] = field(default_factory=list)  # of the task
    distance: list[float] = field(default_factory=list)  # weighted squared distance to the neighbours' routes


class RouteManifold:
    """Train the routers of a few layers, nothing else: L = task + lam x distance to the routes of good neighbours.

    layers: names, or -n for the last n. k: neighbours of a sample, from those the model answered rightly before.
    token: whose scores are a sample's route. Five layers, the last token and k = 3 are published; lam, the step size,
    the width of the weights and that routes are stored anew each epoch are inferred. Inference stays as it was.
    among: "good", or "all" to take neighbours from every sample, which spreads bad routes too (for comparisons).
    renew: look anew before each epoch at who is answered rightly, so that repaired samples serve as neighbours
    (inferred). Source: RoMA (arXiv:2511.07419).
    """

    def __init__(
        self, model: nn.Module, *, layers: int | Sequence[str] = -5, k: int = 3, lam: float = 1.0,
        token: str = "last", loss: Loss = task_loss, among: str = "good", renew: bool = False,
    ):  # fmt: skip
        if k < 1 or lam < 0:
            raise ConfigError("k, lam", got=(k, lam), expected="1 and more, 0 and more")
        if among not in ("good", "all"):
            raise ConfigError("among", got=among, expected='"good" or "all"')
        self.model, self.layers, self.k, self.lam = model, route_layers(model, layers), k, lam
        self.token, self.loss, self.among, self.renew = token, loss, among, renew

    def fit(
        self, data: Batch, embedding_NE: Tensor, *, epochs: int = 5, batch_size: int = 20, lr: float = 3e-3, seed: int,
        on_epoch: Callable[[int, ManifoldHistory], None] | None = None,
    ) -> ManifoldHistory:  # fmt: skip
        """Train on N labelled samples. embedding_NE: of each sample's text, from an encoder that stays fixed.

        on_epoch(epoch, history): after each one, e.g. to judge the model on held-out samples and keep the best.

        Raises: ConfigError where too few are answered rightly; ShapeError.
        """
        num = len(data.x)
        if len(embedding_NE) != num:
            raise ShapeError("embedding", got=tuple(embedding_NE.shape), expected=(num, "E"))
        good_N, near = self._neighbours(data, embedding_NE)
        history = ManifoldHistory(good=int(good_N.sum()))
        with _routers_alone(self.model, self.layers), seeded(seed):
            optimizer = adamw(self.model, lr, weight_decay=0.0)
            for epoch in range(epochs):
                if self.renew and epoch:
                    _, near = self._neighbours(data, embedding_NE)
                sums = self._epoch(data, near, optimizer, batch_size)
                history.loss.append(sums[0])
                history.distance.append(sums[1])
                if on_epoch is not None:
                    on_epoch(epoch, history)
        return history

    def _neighbours(self, data: Batch, embedding_NE: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Who is answered rightly [N], and each sample's neighbours with their weights, both [N, K]."""
        good_N = answered(self.model, data)
        pool_N = good_N if self.among == "good" else torch.ones_like(good_N)
        return good_N, neighbours(embedding_NE, pool_N, self.k)

    def _epoch(
        self, data: Batch, near: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer, batch_size: int
    ) -> list[float]:
        """One pass over the samples, routes stored before it: mean loss of the task, mean distance."""
        ids_NK, weights_NK = near
        num, sums = len(data.x), [0.0, 0.0]
        names = [name for name, layer in layers_of(self.model).items() if layer in self.layers]
        stored_NR = collect_routes(self.model, [data], token=self.token, layers=names)
        for rows in torch.randperm(num).split(batch_size):
            part = Batch(data.x[rows], data.y[rows], data.domain_B[rows])
            task = self.loss(self.model, part)
            routes = sequence_routes([layer.routing for layer in self.layers], self.token)  # type: ignore[misc]
            distance = manifold_loss(routes, stored_NR[ids_NK[rows]], weights_NK[rows])
            optimizer.zero_grad(set_to_none=True)
            (task + self.lam * distance).backward()
            optimizer.step()
            sums = [s + float(v.detach()) * len(rows) / num for s, v in zip(sums, (task, distance), strict=True)]
        return sums


@torch.no_grad()
def answered(model: nn.Module, data: Batch) -> Tensor:
    """bool [N]: sequences whose every asked id is the likeliest."""
    training = model.training
    model.eval()
    hit_BL = model(data.x).argmax(-1) == data.y
    model.train(training)
    return (hit_BL | (data.y == IGNORE)).all(1)


def alignment(embedding_NE: Tensor, routes_NR: Tensor) -> float:
    """Spearman correlation, over all pairs of samples, of their distance as texts and as routes."""
    place = torch.triu_indices(len(routes_NR), len(routes_NR), 1)
    ranks = []
    for points in (embedding_NE, routes_NR):
        distance = torch.cdist(points.double(), points.double())[place[0], place[1]]
        ranks.append(_ranks(distance))
    return float(F.cosine_similarity(ranks[0] - ranks[0].mean(), ranks[1] - ranks[1].mean(), dim=0))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, equal values their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[inverse]


@contextmanager
def _routers_alone(model: nn.Module, chosen: Sequence[MoE]) -> Iterator[None]:
    """Only the routers of these layers take gradients, and the model evaluates."""
    before, training = [(p, p.requires_grad) for p in model.parameters()], model.training
    model.eval()
    for p, _ in before:
        p.requires_grad_(False)
    for layer in chosen:
        layer.router.requires_grad_(True)
    try:
        yield
    finally:
        for p, trained in before:
            p.requires_grad_(trained)
            p.grad = None
        model.train(training)
