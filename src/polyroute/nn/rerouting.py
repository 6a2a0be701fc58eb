"""Routers of a trained model changed for a while: fitted to one sequence, or pushed towards given experts.

Both put a modifier into each layer's router and take it out again, whatever happens inside. The model's own weights
are never touched, and nothing is left behind for the next sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn import moe as moe_layers
from polyroute.nn.corpora import Batch
from polyroute.nn.gates import Hard, Renorm
from polyroute.nn.moe import MoE, Parts
from polyroute.nn.normalise import Delta, Steer
from polyroute.nn.routing import Routing
from polyroute.nn.testbed import Loss, task_loss


@dataclass(kw_only=True)
class Rewiring:
    """What was fitted to one sequence."""

    delta: dict[str, Tensor]  # layer -> what is added to its logits [E]
    confidence: dict[str, float]  # layer -> C on the context before fitting, nats
    chosen: tuple[str, ...]  # layers that were fitted
    loss: list[float] = field(default_factory=list)  # of the context before each step


class TestTimeRerouter:
    """At test time, learn one vector for each layer from the sequence itself and add it to all tokens' logits.

    Everything else stays as it is. lr, steps: Adam on the sequence's own context (the optimizer is inferred); no
    element moves further than about lr x steps. every: tokens that `generate` writes between two fits. ratio: share of
    the layers that are fitted, at least one; prefer: those with the highest or the lowest `selection_surprise` C. (The
    publication reads a high C as confidence, its formula says the opposite: hence both.) loss: of (model, batch).
    layers: name -> layer, None: all of the model; `hf.installed(model)` for a model of transformers (with its `loss`).

        with TestTimeRerouter(model).rewired(prompt_1L) as rewiring:
            logits = model(prompt_1L)  # with the routes of this prompt

    One sequence at a time: vectors are 0 at its start and gone at its end.
    Raises: ConfigError where no gradient could reach the vectors.
    Source: Rewiring experts on the fly (arXiv:2510.14853).
    """

    __test__ = False  # a class of the library, not a set of tests

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.05,
        steps: int = 5,
        every: int = 128,
        ratio: float = 1.0,
        prefer: str = "high_C",
        loss: Loss = task_loss,
        layers: Mapping[str, MoE] | None = None,
    ):
        if prefer not in ("high_C", "low_C"):
            raise ConfigError("prefer", got=prefer, expected='"high_C" or "low_C"')
        if steps < 1 or every < 1 or not lr > 0:
            raise ConfigError("steps, every, lr", got=(steps, every, lr), expected="1, 1 and more; above 0")
        if not 0 < ratio <= 1:
            raise ConfigError("ratio", got=ratio, expected="a share in (0, 1]")
        self.layers = moe_layers.layers(model) if layers is None else dict(layers)
        if not self.layers:
            raise ConfigError("model", got="no MoE layer", expected="at least one")
        for name, layer in self.layers.items():
            _require_gradient(name, layer)
        self.model, self.lr, self.steps, self.every = model, lr, steps, every
        self.ratio, self.prefer, self.loss = ratio, prefer, loss

    @contextmanager
    def rewired(self, context: Batch | Tensor) -> Iterator[Rewiring]:
        """The model with routes fitted to this context inside, as it was afterwards.

        context: one sequence, B = 1; ids [1, L] stand for predicting each next one.
        """
        with self._vectors() as vectors:
            yield self._fit(context, vectors, self._optimizer(vectors))

    @torch.no_grad()
    def generate(
        self, ids_1L: Tensor, num_tokens: int, *, pick: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, list[Rewiring]]:
        """Continue one sequence: fit to what stands there, write up to `every` tokens, and again.

        pick: logits [V] of the last place -> an id, None: the likeliest. Vectors and their optimizer go on within the
        sequence. Every token is read anew, so nothing computed before a fit is used after it. A model with attribute
        `context` sees its last `context` tokens. Returns all ids [1, L + num_tokens] and each fit.
        """
        pick = (lambda logits_V: logits_V.argmax()) if pick is None else pick
        window, training = getattr(self.model, "context", None) or math.inf, self.model.training
        fits: list[Rewiring] = []
        with self._vectors() as vectors:
            optimizer = self._optimizer(vectors)
            for done in range(num_tokens):
                seen = ids_1L[:, -int(min(ids_1L.shape[1], window)) :]
                if done % self.every == 0:
                    fits.append(self._fit(seen, vectors, optimizer))
                self.model.eval()
                chosen = pick(self.model(seen)[0, -1])
                self.model.train(training)
                ids_1L = torch.cat([ids_1L, chosen.reshape(1, 1).to(ids_1L)], 1)
        return ids_1L, fits

    @contextmanager
    def _vectors(self) -> Iterator[dict[str, nn.Parameter]]:
        """A new vector of zeros in each layer's router."""
        with ExitStack() as stack:
            vectors = {}
            for name, layer in self.layers.items():
                weight = next(layer.parameters())
                mod = Delta().build(layer.dim, layer.router.num_experts).to(weight.device)
                vectors[name] = mod.delta_E
                stack.enter_context(added(layer, mod))
            yield vectors

    def _optimizer(self, vectors: Mapping[str, nn.Parameter]) -> torch.optim.Adam:
        return torch.optim.Adam(list(vectors.values()), lr=self.lr)

    def _fit(self, context: Batch | Tensor, vectors: dict[str, nn.Parameter], optimizer: Any) -> Rewiring:
        batch = _as_batch(context)
        if len(batch.x) != 1:
            raise ShapeError("context", got=tuple(batch.x.shape), expected=(1, *batch.x.shape[1:]))
        losses: list[float] = []
        with _frozen(self.model), torch.enable_grad():
            confidence, chosen = self._choose(batch)
            for name in chosen:
                vectors[name].requires_grad_(True)
            for _ in range(self.steps):
                optimizer.zero_grad(set_to_none=True)
                loss = self.loss(self.model, batch)
                losses.append(float(loss.detach()))
                loss.backward()
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for vector in vectors.values():
            vector.requires_grad_(False)
        delta = {name: vector.detach().clone() for name, vector in vectors.items()}
        return Rewiring(delta=delta, confidence=confidence, chosen=chosen, loss=losses)

    @torch.no_grad()
    def _choose(self, batch: Batch) -> tuple[dict[str, float], tuple[str, ...]]:
        """C of each layer, and the layers to fit, in the order of the model."""
        self.loss(self.model, batch)
        confidence = {name: selection_surprise(layer.routing) for name, layer in self.layers.items()}
        sign = -1 if self.prefer == "high_C" else 1
        best = sorted(confidence, key=lambda name: sign * confidence[name])
        best = best[: max(round(self.ratio * len(best)), 1)]
        return confidence, tuple(name for name in confidence if name in best)


def selection_surprise(routing: Routing) -> float:
    """C = mean over (token, expert) pairs of -log of the expert's normalised score, nats; 0 for a sure router."""
    chosen_N = routing.probs_TE[routing.tok_N, routing.exp_N].float()
    return float(-chosen_N.clamp(min=torch.finfo(torch.float32).tiny).log().mean()) if len(chosen_N) else math.nan


@contextmanager
def steering(
    model: nn.Module,
    experts_by_layer: Mapping[str, Sequence[int]],
    *,
    strength: float = 0.5,
    mode: str = "soft",
    layers: Mapping[str, MoE] | None = None,
) -> Iterator[None]:
    """Raise the logits of given experts for all tokens inside; afterwards the model is as it was.

    experts_by_layer: name of a layer -> ids. strength, mode: see Steer. layers: name -> layer, None: all of the model.
    Raises: UnknownNameError for a layer, ConfigError for an expert there is not, or for hard mode with more experts
    than a token has, in which the layer would only serve the given ones at random.
    """
    known = moe_layers.layers(model) if layers is None else dict(layers)
    with ExitStack() as stack:
        for name, experts in experts_by_layer.items():
            if name not in known:
                raise UnknownNameError("layer", name, known)
            layer, ids = known[name], sorted(set(experts))
            if ids and not 0 <= ids[0] <= ids[-1] < layer.router.num_experts:
                raise ConfigError(f"experts of {name}", got=ids, expected=f"0 to {layer.router.num_experts - 1}")
            most = getattr(layer.router.select, "k", layer.router.num_experts)
            if mode == "hard" and len(ids) > most:
                raise ConfigError(f"experts of {name}", got=ids, expected=f'at most {most} with mode="hard"')
            mod = Steer(strength, mode).build(layer.dim, layer.router.num_experts)
            mod.experts = ids
            stack.enter_context(added(layer, mod))
        yield


def find_experts(
    task: Mapping[str, Any], base: Mapping[str, Any], *, tau: float = 0.3, layers: Sequence[str] | None = None
) -> dict[str, list[int]]:
    """The experts that a task uses more often than other text does, by more than tau: layer -> ids.

    task, base: layer -> share of the tokens that use each expert [E], `frequency_E` of a RouteProfile. layers: which
    of them, None: all (published: the middle layers only). tau: 0.25 to 0.5 as published. Choose tau and layers on the
    language the experts are found in, never on the one that is judged.
    """
    names = list(task) if layers is None else list(layers)
    found = {}
    for name in names:
        if name not in task or name not in base:
            raise UnknownNameError("layer", name, set(task) & set(base))
        more_E = torch.as_tensor(task[name]).double() - torch.as_tensor(base[name]).double()
        found[name] = (more_E > tau).nonzero().flatten().tolist()
    return found


@contextmanager
def added(layer: MoE, mod: Any) -> Iterator[Any]:
    """A layer with one more modifier, the last, inside."""
    before = layer.router.mods
    layer.router.mods = Parts([*before, mod])
    try:
        yield mod
    finally:
        layer.router.mods = before


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """A model that evaluates and whose weights take no gradient."""
    training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        model.train(training)


def _as_batch(context: Batch | Tensor) -> Batch:
    if isinstance(context, Batch):
        return context
    if context.ndim != 2 or context.shape[1] < 2:
        raise ShapeError("context", got=tuple(context.shape), expected=(1, "L of 2 and more"))
    return Batch(context[:, :-1], context[:, 1:], torch.zeros(len(context), dtype=torch.int64))


def _require_gradient(name: str, layer: MoE) -> None:
    """Raise ConfigError where a vector on the logits could not learn: the gates of the chosen do not depend on it."""
    gate, k = layer.router.gate, getattr(layer.router.select, "k", None)
    if isinstance(gate, Hard) or (isinstance(gate, Renorm) and k == 1):
        raise ConfigError(
            f"gate of {name or 'the layer'}",
            got=f"{type(gate).__name__} with k = {k}",
            expected="a gate that depends on the logits",
            hint="Use gate=Raw(), or Renorm with two experts a token and more.",
        )
