"""Stop training routers once routing has settled: experts then learn, and forget, nothing because routes move.

    freeze = FreezeGate(model, SteadyRoutes(lambda: routes(model, text)), after=1000)
    train(model, batches, steps=5000, seed=0, on_step=freeze)
    print(freeze.frozen)                       # layer -> step

It is for any model with MoE layers; in a loop of one's own call `freeze(step)` after each optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.metrics import fluctuation
from polyroute.nn.moe import MoE, layers

Settled = Callable[[Mapping[str, MoE], int], Iterable[str]]  # open layers, step -> those whose routing has settled


class FreezeGate:
    """Freeze the router of each layer when `settled` says so, not before `after` optimizer steps.

    A frozen router gets no gradient and its prices stand still. What routers share (a GRU cell, a token network) is
    frozen with the last of them. frozen: layer -> step from which its router stood still.
    Source: Li et al. 2024 (arXiv:2406.16437), whose `after` is about experts / learning rate.
    """

    def __init__(self, model: nn.Module, settled: Settled, *, after: int = 0):
        if after < 0:
            raise ConfigError("after", got=after, expected="0 steps or more")
        if not layers(model):
            raise ConfigError("model", got=type(model).__name__, expected="a model with MoE layers")
        self.model, self.settled, self.after = model, settled, after
        self.frozen: dict[str, int] = {}

    def __call__(self, step: int, history: Any = None) -> None:
        """step: optimizer steps done before this one, from 0. history: not read."""
        still_open = {name: layer for name, layer in layers(self.model).items() if name not in self.frozen}
        if step + 1 < self.after or not still_open:
            return
        settled = [name for name in self.settled(still_open, step) if name in still_open]
        if settled:
            self.frozen |= dict.fromkeys(settled, step)
            freeze_routers(self.model, self.frozen)

    @property
    def done(self) -> bool:
        """Every router stands still."""
        return len(self.frozen) == len(layers(self.model))


def freeze_routers(model: nn.Module, names: Iterable[str]) -> None:
    """Stop these layers' routers: no gradient for what no other layer's router holds, and no move of prices."""
    found, frozen = layers(model), set(names)
    held = {id(p) for name, layer in found.items() if name not in frozen for p in layer.router.parameters()}
    for name in frozen:
        for parameter in found[name].router.parameters():
            if id(parameter) not in held:
                parameter.requires_grad_(False)
                parameter.grad = None  # an optimizer leaves out what has none, decay too
        for mod in found[name].router.mods:
            if hasattr(mod, "rate"):
                mod.rate = 0.0


class SteadyRoutes:
    """Settled: below `share` of a fixed text's tokens change their likeliest expert, `patience` times in a row.

    probe: () -> layer -> likeliest experts [T], as `lambda: testbed.routes(model, list_of_batches)`; asked once in
    `every` steps.
    """

    def __init__(
        self, probe: Callable[[], Mapping[str, Tensor]], *, share: float = 0.01, patience: int = 3, every: int = 50
    ):
        if not 0 < share <= 1 or patience < 1 or every < 1:
            got = (share, patience, every)
            raise ConfigError("share, patience, every", got=got, expected="a share in (0, 1], 1 and more each")
        self.probe, self.share, self.patience, self.every = probe, share, patience, every
        self.changed: dict[str, list[float]] = {}  # layer -> share that changed at each look
        self._before: Mapping[str, Tensor] = {}

    def __call__(self, still_open: Mapping[str, MoE], step: int) -> list[str]:
        if (step + 1) % self.every:
            return []
        now = self.probe()
        for name in still_open:
            if name in self._before:
                self.changed.setdefault(name, []).append(fluctuation(self._before[name], now[name]))
        self._before = now
        looks = {name: self.changed.get(name, [])[-self.patience :] for name in still_open}
        return [name for name, last in looks.items() if len(last) == self.patience and max(last) < self.share]


class ClearGaps:
    """Settled: every expert has served with a logit whose gap to the nearest other is below `small` or above `large`.

    Between the two, noise of width `large` still decides now and then. Reads the routing of the last pass, mean logits
    of each expert's tokens. For routers whose noise leaves logits alone: UniformNoise(on="choice"). The exact test of
    the publication was not checked again (inferred).
    """

    def __init__(self, small: float, large: float):
        if not 0 <= small < large:
            raise ConfigError("small, large", got=(small, large), expected="0 <= small < large, in logits")
        self.small, self.large = small, large
        self.clear: dict[str, Tensor] = {}  # layer -> bool [E]

    @torch.no_grad()
    def __call__(self, still_open: Mapping[str, MoE], step: int) -> list[str]:
        settled = []
        for name, layer in still_open.items():
            routing = layer.routing
            if routing is None or isinstance(routing.logits_TE, tuple):
                continue
            clear_E = self.clear.setdefault(name, torch.zeros_like(routing.count_E, dtype=torch.bool))
            for expert in (routing.count_E > 0).nonzero()[:, 0].tolist():
                mean_E = routing.logits_TE[routing.tok_N[routing.exp_N == expert]].mean(0)
                gap_E = (mean_E - mean_E[expert]).abs()
                gap_E[expert] = torch.inf
                nearest = float(gap_E.min())
                clear_E[expert] = nearest < self.small or nearest > self.large
            if bool(clear_E.all()):
                settled.append(name)
        return settled
