"""A layer as plain data: what its parts are and how they are configured, in JSON, and the layer of such data.

A part is a frozen dataclass of a module of polyroute.nn, written {"part": "selection.TopK", "k": 2}; nothing else is
ever built from a name. A module that a configuration holds (a GRU cell or a pool that layers share) is written with
its sizes and a number, so that the same number is the same module again.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import polyroute.nn
from polyroute.errors import ConfigError, PolyrouteError
from polyroute.nn.experts import Experts, FeedForward
from polyroute.nn.inputs import Recurrent, TokenStream
from polyroute.nn.moe import MoE, RouterGradientWarning

HOLDERS = {"Recurrent": (Recurrent, ("cell", "detach", "carry")), "TokenStream": (TokenStream, ("network",))}


def _of_experts(module: Any) -> dict[str, Any]:
    num_experts, width, out = module.w2_EFO.shape
    return {
        "dim": module.w1_EGD.shape[2],
        "width": width,
        "num_experts": num_experts,
        "act": module.act.name,
        "out": out,
    }


def _of_dense(module: Any) -> dict[str, Any]:
    sizes = {"dim": module.w1.in_features, "width": module.w2.in_features}
    return {**sizes, "act": module.act.name, "out": module.w2.out_features}


def _of_cell(module: Any) -> dict[str, Any]:
    return {"input_size": module.input_size, "hidden_size": module.hidden_size, "bias": module.bias}


def _of_atoms(module: Any) -> dict[str, Any]:
    num_experts, dim = module.w_ND.shape
    return {"dim": dim, "num_experts": num_experts, "act": module.act.name, "out": module.v_NO.shape[1]}


KINDS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {  # class -> where it is, its sizes
    "Experts": ("polyroute.nn.experts", _of_experts),
    "FeedForward": ("polyroute.nn.experts", _of_dense),
    "GatedFeedForward": ("polyroute.nn.experts", _of_dense),
    "AtomBank": ("polyroute.nn.atoms", _of_atoms),
    "GRUCell": ("torch.nn", _of_cell),
}


def has_kind(module: Any) -> bool:
    """Whether a module can be written with its sizes."""
    name = type(module).__name__
    return name in KINDS and type(module) is getattr(importlib.import_module(KINDS[name][0]), name, None)


def spec_of(
    moe: MoE, *, modules: Mapping[str, nn.Module] | None = None, seen: list[nn.Module] | None = None
) -> dict[str, Any]:
    """A layer's configuration as JSON-able data, for `layer_of`.

    modules: names of modules it holds that polyroute cannot build (a token network, a teacher); whoever reads the spec
    gives them again. seen: numbers of modules met so far, for several layers that share some; filled.
    Raises: ConfigError naming what cannot be written down.
    """
    writer = _Writer({id(module): name for name, module in (modules or {}).items()}, [] if seen is None else seen)
    config = dict(moe.config)
    own_pool = type(moe.pool) is Experts and moe.pool is not config["pool"] and not writer.met(moe.pool)
    config["pool"] = None if own_pool else moe.pool
    if own_pool:
        config |= _of_experts(moe.pool)
    plain = isinstance(config["shared"], int) and type(moe.shared) in (FeedForward, type(None))
    if not plain or writer.met(moe.shared):
        config["shared"] = 0 if moe.shared is None else moe.shared
    elif moe.shared is not None:
        config["shared"] = moe.shared.w2.in_features
    return {name: writer.write(value, name) for name, value in config.items()}


def layer_of(
    spec: Mapping[str, Any], *, modules: Mapping[str, nn.Module] | None = None, seen: dict[str, nn.Module] | None = None
) -> MoE:
    """A layer, freshly initialised, from what `spec_of` wrote. seen: modules built so far by number; filled.

    Raises: ConfigError for parts, fields or sizes that are not known; nothing is imported but modules of polyroute.nn.
    """
    reader = _Reader(modules or {}, {} if seen is None else seen)
    try:
        options = {name: reader.read(value, name) for name, value in spec.items()}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", RouterGradientWarning)
            return MoE(**options)
    except PolyrouteError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError("spec", got=f"{type(error).__name__}: {error}", expected="what spec_of wrote") from error


def part_class(name: str) -> type[Any]:
    """The class of a part by "module.Class" within polyroute.nn. Raises: ConfigError for anything but a frozen part."""
    module, _, attribute = name.partition(".")
    if module in {found.name for found in pkgutil.iter_modules(polyroute.nn.__path__)} and attribute.isidentifier():
        found = getattr(importlib.import_module(f"polyroute.nn.{module}"), attribute, None)
        if _is_part(found) and found.__module__ == f"polyroute.nn.{module}":
            return found
    raise ConfigError("spec.part", got=name, expected="a part of polyroute.nn, as selection.TopK")


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen


class _Writer:
    def __init__(self, given: Mapping[int, str], seen: list[nn.Module]):
        self.given, self.seen = given, seen

    def met(self, value: Any) -> bool:
        return any(value is module for module in self.seen)

    def write(self, value: Any, path: str) -> Any:
        """A value of a configuration as JSON."""
        if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, list | tuple):
            return [self.write(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if id(value) in self.given:
            return {"given": self.given[id(value)]}
        if has_kind(value):
            if not self.met(value):
                self.seen.append(value)
            number = next(i for i, module in enumerate(self.seen) if module is value)
            return {"module": str(number), "kind": type(value).__name__, **KINDS[type(value).__name__][1](value)}
        kind = type(value)
        if kind.__module__.startswith("polyroute.nn.") and (_is_part(kind) or kind.__name__ in HOLDERS):
            fields = [f.name for f in dataclasses.fields(value)] if _is_part(kind) else HOLDERS[kind.__name__][1]
            name = f"{kind.__module__.removeprefix('polyroute.nn.')}.{kind.__name__}"
            return {"part": name, **{f: self.write(getattr(value, f), f"{path}.{f}") for f in fields}}
        hint = "Give it by name in `modules`." if isinstance(value, nn.Module) else ""
        raise ConfigError(
            path, got=kind.__name__, expected="plain data, parts of polyroute.nn or known modules", hint=hint
        )


class _Reader:
    def __init__(self, given: Mapping[str, nn.Module], seen: dict[str, nn.Module]):
        self.given, self.seen = given, seen

    def read(self, value: Any, path: str) -> Any:
        """A value of a configuration from JSON."""
        if isinstance(value, list):
            return tuple(self.read(item, f"{path}[{i}]") for i, item in enumerate(value))
        if not isinstance(value, dict):
            return value
        if "given" in value:
            if value["given"] not in self.given:
                got = f"no module {value['given']!r}"
                raise ConfigError(
                    path, got=got, expected="the modules it was saved with", hint="Give them in `modules`."
                )
            return self.given[value["given"]]
        if "module" in value:
            fields = {name: item for name, item in value.items() if name not in ("module", "kind")}
            return self._module(value, fields, path)
        options = {name: self.read(item, f"{path}.{name}") for name, item in value.items() if name != "part"}
        holder = str(value.get("part")).removeprefix("inputs.")
        return HOLDERS[holder][0](**options) if holder in HOLDERS else part_class(str(value.get("part")))(**options)

    def _module(self, value: dict[str, Any], fields: dict[str, Any], path: str) -> nn.Module:
        if value.get("kind") not in KINDS:
            raise ConfigError(f"{path}.kind", got=value.get("kind"), expected=f"one of {', '.join(KINDS)}")
        if value["module"] not in self.seen:
            with torch.random.fork_rng(devices=[]):
                kind = getattr(importlib.import_module(KINDS[value["kind"]][0]), value["kind"])
                self.seen[value["module"]] = kind(**fields)
        return self.seen[value["module"]]
