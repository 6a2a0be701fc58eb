"""Mixture-of-experts layers in a safetensors file: weights, buffers, and a JSON header that says what they are.

Nothing is unpickled, and only parts of polyroute.nn are built. What layers share (a pool, a GRU cell) stands in the
file once and is shared again after loading. Counts within an optimizer step are not kept: save between steps.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polyroute.errors import CheckpointError, ConfigError, MissingExtraError, PolyrouteError
from polyroute.nn.moe import MoE, layers
from polyroute.nn.spec import has_kind, layer_of, spec_of

FORMAT, VERSION = "polyroute-moe", 1
HEADER = "polyroute"  # the metadata key of the header
EXPECTED = f"a file of polyroute.nn.store.save, {FORMAT} version {VERSION}"
EXTRA = "_extra_state"  # what a state_dict holds besides tensors, as the step; it stands in the header


def save(
    module: nn.Module,
    path: str | Path,
    *,
    spec: Mapping[str, Mapping[str, Any]] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write every MoE layer of a module. The file appears whole or not at all.

    spec: layer -> spec to be written instead of `spec_of(layer)`, for layers changed after they were built. modules:
    see spec_of; their weights are saved as far as they are parts of a layer. A MoE itself has the name "".
    Raises: ConfigError when there is no layer, one cannot be described or `path` is no place for a file, OSError or
    CheckpointError when it cannot be written, MissingExtraError.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError("path", got=str(path), expected="a file in a folder that exists")
    found = layers(module) if isinstance(module, nn.Module) else {}
    if not found:
        raise ConfigError("module", got=type(module).__name__, expected="a module with MoE layers")
    seen = _held_twice(found)
    specs = {
        name: spec_of(layer, modules=modules, seen=seen) for name, layer in found.items() if name not in (spec or {})
    }
    tensors, same, extra = _tensors(found)
    _require_saved(seen, found)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "layers": {name: (spec or {}).get(name, specs.get(name)) for name in found},
        "extra": extra,
        "frozen": [
            f"{n}/{p}" for n, layer in found.items() for p, v in layer.named_parameters() if not v.requires_grad
        ],
        "same": same,
    }
    try:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError("module", got=f"state that is no JSON ({error})", expected="plain, finite values") from error
    _write(tensors, text, path)


def load(path: str | Path, *, modules: Mapping[str, nn.Module] | None = None) -> dict[str, MoE]:
    """The layers of a file, by name, with the dtypes they were saved in, on the CPU, in training mode.

    modules: those given to `save` by name. Their weights are set only when everything else fits.
    Raises: CheckpointError for another format, version, architecture or a damaged file; ConfigError for `modules`.
    """
    with _opened(Path(path)) as file:
        shared: dict[str, nn.Module] = {}
        made = {}
        for name, spec in file.header["layers"].items():
            _check_pool(file, name, spec)
            try:
                made[name] = layer_of(spec, modules=modules, seen=shared)
            except PolyrouteError as error:
                raise CheckpointError(path, f"layer {name!r}: {error}", expected=EXPECTED) from error
        for name, layer in made.items():
            _check(file, name, layer, dtypes=False)
        for name, layer in made.items():
            _fill(file, name, layer)
        _tie(file, made)
        return made


def load_into(module: nn.Module, path: str | Path, *, modules: Mapping[str, nn.Module] | None = None) -> None:
    """Set the layers of a module to those of a file: the same names, specs, shapes and dtypes.

    Raises: CheckpointError naming the first thing that differs, before anything is changed.
    """
    found = layers(module)
    seen = _held_twice(found)
    with _opened(Path(path)) as file:
        saved = file.header["layers"]
        if saved.keys() != found.keys():
            raise CheckpointError(path, f"layers {sorted(saved)}", expected=f"layers {sorted(found)}")
        for name, layer in found.items():
            _compare(path, name, saved[name], json.loads(json.dumps(spec_of(layer, modules=modules, seen=seen))))
            _check(file, name, layer, dtypes=True)
        for name, layer in found.items():
            _fill(file, name, layer)


class _File(NamedTuple):
    path: Path
    header: dict[str, Any]
    tensors: Any  # an open safetensors file
    keys: frozenset[str]

    def key(self, layer: str, name: str) -> str:
        """Where a layer's tensor stands."""
        return self.header["same"].get(f"{layer}/{name}", f"{layer}/{name}")


def _state(layer: MoE) -> dict[str, Tensor]:
    return {name: value for name, value in layer.state_dict(keep_vars=True).items() if not name.endswith(EXTRA)}


def _held_twice(found: Mapping[str, MoE]) -> list[nn.Module]:
    """Pools and dense networks that several layers hold, although one of them may have made it."""
    held = [part for layer in found.values() for part in (layer.pool, layer.shared) if has_kind(part)]
    times = Counter(map(id, held))
    return list({id(part): part for part in held if times[id(part)] > 1}.values())


def _tensors(found: Mapping[str, MoE]) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """Every tensor once; for those met again where they stand; and what is no tensor."""
    first: dict[int, str] = {}
    storages: set[int] = set()
    tensors, same, extra = {}, {}, {}
    for name, layer in found.items():
        for key, value in layer.state_dict(keep_vars=True).items():
            if key.endswith(EXTRA):
                extra[f"{name}/{key}"] = value
            elif id(value) in first:
                same[f"{name}/{key}"] = first[id(value)]
            else:
                first[id(value)] = f"{name}/{key}"
                plain = value.detach().cpu().contiguous()
                place = plain.untyped_storage().data_ptr()
                tensors[f"{name}/{key}"] = plain.clone() if place in storages else plain  # two views of one tensor
                storages.add(place)
    return tensors, same, extra


def _require_saved(seen: Sequence[nn.Module], found: Mapping[str, MoE]) -> None:
    """A module that only a configuration holds, as a frozen teacher, would come back with other weights."""
    ours = {id(value) for layer in found.values() for value in _state(layer).values()}
    for module in seen:
        if any(id(value) not in ours for value in module.state_dict(keep_vars=True).values()):
            hint = "Give it by name in `modules`, here and to `load`."
            expected = "modules whose weights belong to the layer"
            raise ConfigError("module", got=type(module).__name__, expected=expected, hint=hint)


def _write(tensors: dict[str, Tensor], header: str, path: Path) -> None:
    library = _safetensors()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        library.torch.save_file(tensors, unfinished, metadata={HEADER: header})
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except library.SafetensorError as error:
        raise CheckpointError(path, str(error), expected="a place that can be written") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    """A file whose format, version and header are right."""
    library = _safetensors()
    try:
        opened = library.safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(path, "no file", expected=EXPECTED) from error
    except (OSError, library.SafetensorError) as error:
        raise CheckpointError(path, f"a damaged or other file ({error})", expected=EXPECTED) from error
    with opened as tensors:
        header = _header(path, tensors.metadata())
        foreign = [key for key in tensors.keys() if key.rpartition("/")[0] not in header["layers"]]  # noqa: SIM118
        if foreign:
            raise CheckpointError(path, f"the tensor {foreign[0]!r}", expected=f"those of {sorted(header['layers'])}")
        yield _File(path, header, tensors, frozenset(tensors.keys()))


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})[HEADER])
        kind, version = header["format"], header["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(path, "no polyroute header", expected=EXPECTED) from error
    if kind != FORMAT:
        raise CheckpointError(path, f"format {kind!r}", expected=EXPECTED)
    if version != VERSION:
        raise CheckpointError(
            path, f"version {version!r}", expected=EXPECTED, hint="Read it with the polyroute that wrote it."
        )
    kinds = {"layers": dict, "extra": dict, "same": dict, "frozen": list}
    wrong = [name for name, kind in kinds.items() if not isinstance(header.get(name), kind)]
    places = [] if wrong else [*header["same"], *header["same"].values()]
    if not all(
        isinstance(place, str) and "/" in place and place.rpartition("/")[0] in header["layers"] for place in places
    ):
        wrong = ["same"]
    if wrong:
        raise CheckpointError(path, f"a header without a proper {', '.join(wrong)}", expected=EXPECTED)
    if not all(isinstance(spec, dict) for spec in header["layers"].values()):
        raise CheckpointError(path, "a layer without a spec", expected=EXPECTED)
    return header


def _check_pool(file: _File, name: str, spec: Mapping[str, Any]) -> None:
    """Whether the experts are there in the spec's sizes, before memory is taken for them."""
    pool = spec if spec.get("pool") is None else spec["pool"]
    key = file.key(name, "pool.w2_EFO")
    if not isinstance(pool, dict) or pool.get("kind", "Experts") != "Experts" or "given" in pool:
        return
    wanted = [pool.get(size) for size in ("num_experts", "width", "out")]
    got = list(file.tensors.get_slice(key).get_shape()) if key in file.keys else None
    if got != wanted:
        raise CheckpointError(file.path, f"layer {name!r}: pool.w2_EFO {got}", expected=f"{wanted}, as its spec says")


def _check(file: _File, name: str, layer: MoE, *, dtypes: bool) -> None:
    """Whether every tensor of a layer is there in its shape, and no other."""
    state = _state(layer)
    saved = {
        key.removeprefix(f"{name}/") for key in (*file.keys, *file.header["same"]) if key.rpartition("/")[0] == name
    }
    if saved != state.keys():
        got = f"layer {name!r} with {sorted(saved - state.keys())} and without {sorted(state.keys() - saved)}"
        raise CheckpointError(file.path, got, expected="the tensors of its spec")
    for key, value in state.items():
        place = file.key(name, key)
        if place not in file.keys:
            raise CheckpointError(file.path, f"no tensor {place}", expected=EXPECTED)
        shape = tuple(file.tensors.get_slice(place).get_shape())
        if shape != tuple(value.shape):
            raise CheckpointError(file.path, f"{place} {shape}", expected=f"{tuple(value.shape)}")
        got = file.tensors.get_tensor(place).dtype
        if got != value.dtype and (dtypes or got.is_floating_point != value.dtype.is_floating_point):
            raise CheckpointError(file.path, f"{place} {got}", expected=f"{value.dtype}")
    for key, kept in file.header["extra"].items():
        step = kept.get("step") if isinstance(kept, dict) else None
        if key == f"{name}/{EXTRA}" and (not isinstance(step, int) or step < 0):
            raise CheckpointError(file.path, f"step {step!r} of layer {name!r}", expected="a number of optimizer steps")


@torch.no_grad()
def _fill(file: _File, name: str, layer: MoE) -> None:
    """Set a layer's tensors, in the file's dtypes, its step and what else its parts keep."""
    frozen = set(file.header["frozen"])
    for key, value in _state(layer).items():
        saved = file.tensors.get_tensor(file.key(name, key))
        if value.dtype == saved.dtype:
            value.copy_(saved)
        else:
            value.data = saved.to(value.device)
        if isinstance(value, nn.Parameter):
            value.requires_grad_(f"{name}/{key}" not in frozen)
    for part_name, part in layer.named_modules():
        key = f"{name}/{part_name}.{EXTRA}" if part_name else f"{name}/{EXTRA}"
        if key in file.header["extra"]:
            part.set_extra_state(file.header["extra"][key])


def _tie(file: _File, made: Mapping[str, MoE]) -> None:
    """Make tensors that were one again one: routers or weights that layers share without sharing a module."""
    for key, first in file.header["same"].items():
        (layer, _, name), (origin, _, original) = key.rpartition("/"), first.rpartition("/")
        holder, _, own = name.rpartition(".")
        source, _, theirs = original.rpartition(".")
        setattr(made[layer].get_submodule(holder), own, getattr(made[origin].get_submodule(source), theirs))


def _compare(path: str | Path, name: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for field in sorted({*saved, *ours}):
        if saved.get(field) != ours.get(field):
            got = f"{field} = {json.dumps(saved.get(field))}"
            raise CheckpointError(path, f"layer {name!r} with {got}", expected=f"{json.dumps(ours.get(field))}")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("safetensors", "nn") from error
    return safetensors
