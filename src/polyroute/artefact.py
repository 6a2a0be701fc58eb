"""A fitted router as one file: a `.npz` of plain arrays with a versioned JSON header. Nothing in it is ever executed.

The header names each router by a word of `ROUTERS`; a file cannot make anything else be imported. Routers inside
routers (a prior, the members of a mix) are packed with the one that holds them.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.errors import ArtefactError, PolyrouteError, UnknownNameError
from polyroute.types import Array, Candidate, Profile

FORMAT = "polyroute-router"
VERSION = 1
HEADER = "header"

ROUTERS: dict[str, str] = {
    "knn": "polyroute.routers.knn:KNN",
    "linear": "polyroute.routers.linear:Linear",
    "cluster": "polyroute.routers.cluster:Cluster",
    "length": "polyroute.routers.length:Length",
    "price": "polyroute.routers.price:Price",
    "load": "polyroute.routers.load:Load",
    "constant": "polyroute.routers.constant:Constant",
    "running": "polyroute.routers.running:RunningMean",
    "mix": "polyroute.routers.mix:Mix",
    "together": "polyroute.routers.mix:Together",
    "calibrated": "polyroute.routers.calibrate:Calibrated",
    "irt": "polyroute.routers.irt:IRT",
    "bradley-terry": "polyroute.routers.bradley_terry:BradleyTerry",
    "elo": "polyroute.routers.bradley_terry:Elo",
    "latency": "polyroute.routers.latency:Latency",
    "conformal": "polyroute.routers.conformal:Conformal",
    "incontext": "polyroute.routers.incontext:InContext",
    "centroids": "polyroute.routers.centroids:Centroids",
    "soft-targets": "polyroute.routers.soft_targets:SoftTargets",
    "novelty": "polyroute.routers.novelty:Novelty",
    "contextual": "polyroute.routers.context:Contextual",
    "diagonal": "polyroute.routers.diagonal:Diagonal",
    "match": "polyroute.routers.match:Match",
    "pairwise": "polyroute.routers.pairwise:Pairwise",
    "coarse-to-fine": "polyroute.routers.coarse:CoarseToFine",
    "described": "polyroute.routers.described:Described",
    "softmax-policy": "polyroute.routers.softmax_policy:SoftmaxPolicy",
    "cascade": "polyroute.routers.cascade:Cascade",
    "default": "polyroute.routers.default:Default",
}


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """A router read from a file, and what was saved beside it."""

    router: Any  # fitted; speaks protocols.Router
    kind: str  # its name in ROUTERS
    features: str  # name of the featuriser its queries must be embedded with
    pool: list[Candidate]  # the candidates it was saved with
    info: dict[str, Any] = field(default_factory=dict)  # whatever the one who saved it noted: data, date, figures
    version: int = VERSION
    fingerprint: str = ""  # the first 12 hex digits of the file's SHA-256


def resolve_router(name: str) -> type[Any]:
    """The class behind a name of `ROUTERS`, or behind a dotted path `package.module:Class`.

    A path imports code, so it is for people at a command line only; `load` never takes one from a file.
    Raises: UnknownNameError with the nearest name.
    """
    path = ROUTERS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UnknownNameError("router", name, ROUTERS)
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownNameError("router", name, ROUTERS) from error
    return found


def save(
    router: Any, path: str | Path, *, features: str, pool: Sequence[Candidate], info: Mapping[str, Any] | None = None
) -> str:
    """Write a fitted router. The file appears whole or not at all. Returns its fingerprint.

    features: name of the featuriser of the queries it was fitted on. info: JSON-able notes.
    Raises: NotFittedError; UnknownNameError for a class that `ROUTERS` does not name.
    """
    tree, arrays = pack(router)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "features": features,
        "pool": [_plain(candidate) for candidate in pool],
        "info": dict(info or {}),
        "router": tree,
    }
    text = json.dumps(header, ensure_ascii=False, allow_nan=False).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{HEADER: np.frombuffer(text, np.uint8)}, **arrays)
    content = buffer.getvalue()
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return fingerprint(content)


def load(path: str | Path) -> Artefact:
    """Read a router written by `save`. Raises: ArtefactError saying what is wrong with the file."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ArtefactError(path, f"no file that can be read ({error.strerror})") from error
    arrays = _arrays(path, content)
    header = _header(path, arrays)
    try:
        router = unpack(header["router"], arrays)
        return Artefact(
            router,
            header["router"]["kind"],
            str(header["features"]),
            [_candidate(plain) for plain in header["pool"]],
            dict(header["info"]),
            header["version"],
            fingerprint(content),
        )
    except UnknownNameError as error:
        raise ArtefactError(path, f"a router this version does not know ({error})") from error
    except KeyError as error:
        raise ArtefactError(path, f"no {error.args[0]!r} where one is needed") from error
    except (PolyrouteError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ArtefactError(path, f"contents that do not fit together ({error})") from error


def fingerprint(content: bytes) -> str:
    """Twelve hex digits that name a file's content."""
    return hashlib.sha256(content).hexdigest()[:12]


def pack(router: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """A router as JSON-able data and named arrays. Raises: UnknownNameError for a class `ROUTERS` does not name."""
    arrays: dict[str, Array] = {}
    return _pack(router, "router", arrays), arrays


def unpack(tree: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    """The router that `pack` took apart. Raises: UnknownNameError for a kind `ROUTERS` does not name."""
    kind = tree["kind"]
    if kind not in ROUTERS:
        raise UnknownNameError("kind of router", str(kind), ROUTERS)
    params = {name: _live(value, arrays) for name, value in tree["params"].items()}
    return resolve_router(kind).from_state(params, {name: arrays[full] for name, full in tree["arrays"].items()})


def _pack(router: Any, place: str, arrays: dict[str, Array]) -> dict[str, Any]:
    target = f"{type(router).__module__}:{type(router).__qualname__}"
    kind = next((name for name, known in ROUTERS.items() if known == target), None)
    if kind is None:
        raise UnknownNameError("kind of router", target, ROUTERS)
    params, own = router.state()
    names = {}
    for name, array in own.items():
        names[name] = f"{place}/{name}"
        arrays[names[name]] = np.asarray(array)
    plain = {name: _packed(value, f"{place}/{name}", arrays) for name, value in params.items()}
    return {"kind": kind, "params": plain, "arrays": names}


def _packed(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    """A parameter with every router in it replaced by its tree."""
    if hasattr(value, "state"):
        return {"$router": _pack(value, place, arrays)}
    if isinstance(value, (list, tuple)):
        return [_packed(item, f"{place}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {key: _packed(item, f"{place}/{key}", arrays) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _live(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return [_live(item, arrays) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$router"}:
            return unpack(value["$router"], arrays)
        return {key: _live(item, arrays) for key, item in value.items()}
    return value


def _arrays(path: object, content: bytes) -> dict[str, Array]:
    """Every array of the file, read to the end so that damage shows now."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ArtefactError(path, "compressed members")  # `save` writes none; they could unfold without end
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ArtefactError:
        raise
    except zipfile.BadZipFile as error:
        problem = "a truncated or damaged file" if content[:2] == b"PK" else "a file of another kind"
        raise ArtefactError(path, problem) from error
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, UnicodeError, TypeError) as error:
        raise ArtefactError(path, f"arrays that cannot be read ({error})") from error


def _header(path: object, arrays: dict[str, Array]) -> dict[str, Any]:
    raw = arrays.pop(HEADER, None)
    if raw is None or raw.dtype != np.uint8 or raw.ndim != 1:
        raise ArtefactError(path, "an .npz without a header of ours")
    try:
        header = json.loads(raw.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ArtefactError(path, f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtefactError(path, "a header of another format", expected=f"format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise ArtefactError(path, f"version {header.get('version')!r}", expected=f"version {VERSION}")
    return header


def _plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON-able data; what stands at its default is left out."""
    profile = {f.name: getattr(candidate.profile, f.name) for f in fields(Profile)}
    kept = {name: value for name, value in profile.items() if not _is_default(name, value)}
    if "offers" in kept:
        kept["offers"] = sorted(kept["offers"])
    if "ability" in kept:
        kept["ability"] = {skill: float(logit) for skill, logit in kept["ability"].items()}
    if "embedding" in kept:
        kept["embedding"] = np.asarray(kept["embedding"], np.float32).tolist()
    return {"id": candidate.id, "kind": candidate.kind, "profile": kept}


def _is_default(name: str, value: Any) -> bool:
    return value is None or (name in ("offers", "ability") and not value) or (name.startswith("price") and value == 0)


def _candidate(plain: Mapping[str, Any]) -> Candidate:
    profile = dict(plain["profile"])
    if "offers" in profile:
        profile["offers"] = frozenset(profile["offers"])
    if "embedding" in profile:
        profile["embedding"] = np.asarray(profile["embedding"], np.float32)
    return Candidate(str(plain["id"]), str(plain["kind"]), Profile(**profile))
