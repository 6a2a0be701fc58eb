"""The experts of a checkpoint folder, read from its safetensors files one tensor at a time."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import CheckpointError, MissingExtraError, UnknownNameError
from polyroute.nn.experts import Experts
from polyroute.nn.hf.blocks import ACTIVATIONS, blocks, convert

INDEX = "model.safetensors.index.json"
ONE_BY_ONE = re.compile(r"(?P<block>.+)\.experts\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight")
FUSED = re.compile(r"(?P<block>.+)\.experts\.(?P<matrix>gate_up_proj|down_proj)(\.weight)?")
MATRICES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
Tensors = dict[tuple[str, int | None], tuple[Any, str]]  # (matrix, expert or None for all) -> (open file, name in it)
EXPECTED = "a folder of a transformers model with experts, in safetensors"


def load_experts(source: str | Path | nn.Module, *, layers: Collection[int] | None = None) -> dict[str, Experts]:
    """The experts of every block, by the block's name in the file or model, e.g. "model.layers.3.mlp".

    source: a folder with model.safetensors or shards and their index, in either layout: a matrix for each expert
    (experts.3.gate_proj.weight; Mixtral's w1, w3, w2) or one for all (experts.gate_up_proj); or a model. layers: only
    those numbers. dtypes are the file's. Nothing is unpickled, and no more than one tensor of the file is held besides
    the result. Raises: CheckpointError, UnknownNameError (activation), MissingExtraError.
    """
    if isinstance(source, nn.Module):
        return {name: convert(block).pool for name, block in blocks(source).items() if _wanted(name, layers)}
    folder = Path(source)
    act = _activation(folder)
    places: dict[str, Tensors] = defaultdict(dict)
    with ExitStack() as stack:
        for path in _shards(folder):
            file = stack.enter_context(_opened(path))
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                found = _place(key)
                if found is not None and _wanted(found[0], layers):
                    places[found[0]][found[1:]] = (file, key)
        if not places:
            raise CheckpointError(folder, "no expert weights", expected=EXPECTED)
        with torch.random.fork_rng(devices=[]):
            return {block: _experts(folder, block, places[block], act) for block in sorted(places, key=_by_number)}


def _place(key: str) -> tuple[str, str, int | None] | None:
    """(block, matrix, expert or None for all) of a tensor's name; None for what is not an expert's."""
    if (match := ONE_BY_ONE.fullmatch(key)) and match["matrix"] in MATRICES:
        return match["block"], MATRICES[match["matrix"]], int(match["expert"])
    if match := FUSED.fullmatch(key):
        return match["block"], match["matrix"], None
    return None


def _wanted(block: str, layers: Collection[int] | None) -> bool:
    return layers is None or any(int(number) in layers for number in re.findall(r"\d+", block))


def _by_number(block: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", block)]


def _experts(folder: Path, block: str, tensors: Tensors, act: str) -> Experts:
    """The experts of one block, complete or not at all."""
    numbers = {expert for _, expert in tensors if expert is not None}
    wanted = {("gate_up_proj", None), ("down_proj", None)}
    if numbers:
        wanted = {(kind, expert) for kind in ("gate", "up", "down") for expert in range(max(numbers) + 1)}
    if set(tensors) != wanted:
        missing = sorted(f"{kind} of {'all' if e is None else e}" for kind, e in wanted - set(tensors))[:5]
        got = f"{block} without {', '.join(missing)}" if missing else f"two layouts in {block}"
        raise CheckpointError(folder, got, expected="every matrix of every expert, in one layout")
    w1_EGD, w2_EFO = _one_by_one(folder, block, tensors) if numbers else _fused(tensors)
    if w1_EGD.ndim != 3 or w2_EFO.shape[:2] != (len(w1_EGD), w1_EGD.shape[1] // 2):
        got = f"{block} with {tuple(w1_EGD.shape)} and {tuple(w2_EFO.mT.shape)}"
        raise CheckpointError(folder, got, expected="gate_up_proj [E, 2 F, D] and down_proj [E, O, F]")
    made = Experts(1, 1, 1, act=act)
    made.w1_EGD, made.w2_EFO = nn.Parameter(w1_EGD), nn.Parameter(w2_EFO)
    return made


def _fused(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """w1 [E, 2 F, D] and w2 [E, F, O] from one tensor for each matrix."""
    first, second = (file.get_tensor(key) for file, key in (tensors["gate_up_proj", None], tensors["down_proj", None]))
    return first, second.mT.contiguous()


def _one_by_one(folder: Path, block: str, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The same from three matrices for each expert, put in their places as they are read."""
    num_experts = len(tensors) // 3
    file, key = tensors["down", 0]
    out, width = file.get_slice(key).get_shape()
    file, key = tensors["gate", 0]
    first = file.get_tensor(key)
    w1_EGD = first.new_empty(num_experts, 2 * width, first.shape[1])
    w2_EFO = first.new_empty(num_experts, width, out)
    for (kind, e), (file, key) in tensors.items():
        place = {"gate": w1_EGD[e, :width], "up": w1_EGD[e, width:], "down": w2_EFO[e].T}[kind]
        matrix = file.get_tensor(key)
        if matrix.shape != place.shape or matrix.dtype != place.dtype:
            got = f"{key} as {tuple(matrix.shape)} {matrix.dtype}"
            raise CheckpointError(folder, got, expected=f"{tuple(place.shape)} {place.dtype} in {block}")
        place.copy_(matrix)
    return w1_EGD, w2_EFO


def _activation(folder: Path) -> str:
    """The activation of config.json, or of its text_config."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hidden_act = config.get("hidden_act") or config.get("text_config", {}).get("hidden_act") or "silu"
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(folder / "config.json", type(error).__name__, expected=EXPECTED) from error
    if hidden_act not in ACTIVATIONS:
        raise UnknownNameError("hidden_act", str(hidden_act), ACTIVATIONS)
    return ACTIVATIONS[hidden_act]


def _shards(folder: Path) -> list[Path]:
    """The files of the index, or the only one. Names that lead out of the folder are refused."""
    index = folder / INDEX
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise CheckpointError(folder, "no model.safetensors and no index", expected=EXPECTED)
        return [single]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(index, type(error).__name__, expected="an index with a weight_map") from error
    if outside:
        raise CheckpointError(index, f"the file {outside[0]!r}", expected="names of files beside it")
    return [folder / name for name in sorted(names)]


def _opened(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "nn") from error
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, str(error), expected="a safetensors file") from error
