"""Put expert layers where a model has dense feed-forward networks, and read what those networks do on a text."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.experts import FeedForward
from polyroute.nn.moe import MoE
from polyroute.nn.surgery import neurons


def feed_forwards(model: nn.Module) -> dict[str, FeedForward]:
    """The dense networks of a model by name, those inside expert layers left out. Raises: ConfigError without any."""
    inside = {id(m) for layer in model.modules() if isinstance(layer, MoE) for m in layer.modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FeedForward) and id(module) not in inside
    }
    if not found:
        raise ConfigError("model", got=type(model).__name__, expected="a model with FeedForward networks")
    return found


def transplant(model: nn.Module, make: Callable[[str, FeedForward], nn.Module]) -> nn.Module:
    """A copy of a model in which make(name, network) stands for each dense network; `make` gets the copy's networks."""
    changed = copy.deepcopy(model)
    for name, network in feed_forwards(changed).items():
        parent, _, last = name.rpartition(".")
        if not last or not name:
            raise ConfigError("model", got="a FeedForward", expected="a model that holds one")
        setattr(changed.get_submodule(parent), last, make(name, network))
    return changed


@torch.no_grad()
def activations(model: nn.Module, ids_BL: Tensor) -> dict[str, Tensor]:
    """What each dense network's second matrix reads on a text: name -> [T, F]. The model is not changed."""
    found: dict[str, Tensor] = {}
    hooks = [
        network.register_forward_pre_hook(
            lambda module, inputs, name=name: found.update({name: neurons(module, inputs[0]).flatten(0, -2)})
        )
        for name, network in feed_forwards(model).items()
    ]
    try:
        model(ids_BL)
    finally:
        for hook in hooks:
            hook.remove()
    return found
