"""What can be wrong with a configuration whose every value is right: names that clash, files that are not there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from polyroute.errors import ConfigError, nearest
from polyroute.gateway.guards import guard_faults
from polyroute.gateway.strict import Words, join
from polyroute.signals.needs import CAPABILITIES
from polyroute.types import Candidate, Profile

if TYPE_CHECKING:
    from polyroute.gateway.config import Config, ModelConfig

RESERVED = ("named", "none", "other")  # words that records and metrics use in a policy's or a model's place
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
READ_BY = {
    "url": ("openai",),
    "api_key": ("openai",),
    "upstream_model": ("openai", "replay"),
    "file": ("local",),
    "table": ("replay",),
}


def is_path(file: str | None) -> bool:
    """Whether `file` of a model is a path, and not a name of the catalogue."""
    return file is not None and (file.endswith(".gguf") or "/" in file or "\\" in file or file.startswith("~"))


def faults(config: Config) -> Iterator[ConfigError]:
    """Every problem of a configuration as a whole."""
    yield from name_faults(config)
    for i, model in enumerate(config.models):
        yield from model_faults(model, f"models[{i}]")
    yield from guard_faults(config.guards, [model.id for model in config.models])
    artefact = config.router.artefact
    if artefact != "default" and not Path(artefact).is_file():
        hint = 'Write one with `polyroute fit`, or say "default".'
        yield ConfigError("router.artefact", got=artefact, expected="a file that exists", hint=hint)
    if config.journal.path.is_dir():
        yield ConfigError("journal.path", got=str(config.journal.path), expected="a file, not a folder")
    if config.source is not None and config.journal.path == config.source.absolute():
        yield ConfigError("journal.path", got=str(config.journal.path), expected="another file than this one")


def name_faults(config: Config) -> Iterator[ConfigError]:
    """Names that clash or that nobody has."""
    ids = Counter(model.id for model in config.models)
    for i, model in enumerate(config.models):
        if model.id in RESERVED:
            yield ConfigError(f"models[{i}].id", got=model.id, expected=f"another name than {', '.join(RESERVED)}")
        if ids[model.id] > 1:
            ids[model.id] = 0  # told once
            yield ConfigError(f"models[{i}].id", got=model.id, expected="an id that no other model has")
    for name, policy in config.policies.items():
        path = join("policies", name)
        if name in ids:
            hint = "Clients could not tell which they ask for: rename one of them."
            yield ConfigError(path, got=name, expected="a name that is not a model's id", hint=hint)
        if name in RESERVED or not re.fullmatch(r"[^\s\x00-\x1f\x7f]{1,200}", name):
            yield ConfigError(path, got=name, expected=f"a name without spaces, and none of {', '.join(RESERVED)}")
        if policy.models is not None and not policy.models:
            yield ConfigError(f"{path}.models", got=[], expected="at least one id", hint="Leave it out for all models.")
        for k, wanted in enumerate(policy.models or ()):
            if wanted not in ids:
                near = nearest(wanted, ids)
                hint = f"Did you mean {near!r}?" if near else ""
                known = ", ".join(list(ids)[:12])
                yield ConfigError(f"{path}.models[{k}]", got=wanted, expected=f"the id of a model ({known})", hint=hint)


def model_faults(model: ModelConfig, path: str) -> Iterator[ConfigError]:
    """Keys that this backend does not read, that it needs, and files that are not there."""
    for key, backends in READ_BY.items():
        if getattr(model, key) is not None and model.backend not in backends:
            hint = f'Remove it, or say backend = "{backends[0]}".'
            yield ConfigError(
                f"{path}.{key}", got=Words("a value"), expected=f"nothing with backend {model.backend!r}", hint=hint
            )
    if model.backend == "openai":
        yield from url_faults(model.url, f"{path}.url")
    if model.backend == "local" and model.file is not None and is_path(model.file) and not Path(model.file).is_file():
        hint = "For a name of the catalogue write it without a folder; see `polyroute models list`."
        yield ConfigError(f"{path}.file", got=model.file, expected="a file that exists", hint=hint)
    if model.backend == "replay" and (model.table is None or not model.table.is_file()):
        got = None if model.table is None else str(model.table)
        yield ConfigError(f"{path}.table", got=got, expected="a Parquet file that exists")


def url_faults(url: str | None, path: str) -> Iterator[ConfigError]:
    """A base URL without credentials, query or fragment."""
    expected = "a base URL such as https://api.openai.com/v1"
    if url is None:
        yield ConfigError(path, got=None, expected=expected)
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        yield ConfigError(path, got=url, expected=expected, hint=f"{error}.")
        return
    if parts.username or parts.password:
        yield ConfigError(
            path,
            got=Words("one that has them (not shown)"),
            expected="a URL without a user name or password",
            hint="Use api_key.",
        )
    elif parts.scheme not in ("http", "https"):
        near = "" if "://" in url else f"Write it as https://{url}"
        yield ConfigError(path, got=url, expected="a URL that begins with http:// or https://", hint=near)
    elif not parts.hostname or parts.query or parts.fragment or re.search(r"\s", url):
        yield ConfigError(path, got=url, expected=expected)


def warnings(config: Config) -> Iterator[str]:
    """What is legal and perhaps not meant."""
    server = config.server
    if server.host not in LOOPBACK and not server.client_keys:
        yield f"server.host {server.host} is reachable by others and server.client_keys is empty: anyone may spend"
    if "*" in server.allow_origins and not server.client_keys:
        yield "server.allow_origins is * and server.client_keys is empty: any web page its users open may spend"
    for i, model in enumerate(config.models):
        parts = urlsplit(model.url or "")
        if model.api_key is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            yield f"models[{i}].url: the key of {model.id!r} travels unencrypted over http"
        yield from capability_warnings(model.offers or (), f"models[{i}].offers")
    for name, policy in config.policies.items():
        path = join("policies", name)
        yield from capability_warnings(policy.needs, f"{path}.needs")
        if policy.epsilon != 0.05 and policy.explore != "epsilon":
            yield f'{path}.epsilon is read only with explore = "epsilon"'
        for metric in ("cost", "latency"):
            if policy.weights is not None and policy.weights.get(metric, 0.0) > 0.0:
                yield f"{path}.weights.{metric} is positive: more {metric} is preferred; a price is negative"
        if policy.weights is not None and policy.weights.get("quality", 0.0) <= 0.0:
            yield f"{path}.weights gives quality no weight"


def capability_warnings(names: Sequence[str] | frozenset[str], path: str) -> Iterator[str]:
    """Names that look like a capability requests are checked for, and are none."""
    for name in sorted(names):
        if name not in CAPABILITIES:
            near = nearest(name, CAPABILITIES)
            meant = f"; did you mean {near!r}?" if near else ""
            yield f"{path}: requests are never found to need {name!r} by themselves{meant}"


def pool_warnings(config: Config, pool: Sequence[Candidate], lookup: Callable[[str], Profile | None]) -> Iterator[str]:
    """What is missing in the pool as it takes effect."""
    from polyroute.gateway.config import known_profile

    for model, one in zip(config.models, pool, strict=True):
        known = known_profile(model, lookup) is not None
        if not known and model.price_in is None and model.price_out is None:
            yield f"{model.id}: price_in and price_out are not known and count as 0: it will look free"
        if model.offers is None and not one.profile.offers and model.backend == "openai":
            yield f"{model.id}: offers is not known: requests with tools, images or JSON schemas will not go there"
        if not one.profile.tokens_per_s and model.backend == "local" and not known:
            yield f"{model.id}: tokens_per_s is not known; expected latency will be learned from traffic"
    for name, policy in config.policies.items():
        among = [one for one in pool if policy.models is None or one.id in policy.models]
        if among and policy.needs and not any(policy.needs <= one.profile.offers for one in among):
            yield f"{join('policies', name)}: no model offers {', '.join(sorted(policy.needs))}: it refuses everything"
    if len(pool) == 1:
        yield "the pool has one model: there is nothing to choose"
