"""What is known of models before they are tried: local files and where to get them, prices of hosted ones.

The table is catalogue.toml beside this module. Prices age and speeds differ by machine: whatever the operator's
configuration says wins over it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from polyroute.errors import ConfigError, UnknownNameError
from polyroute.types import Candidate, Profile

Entry = TypeVar("Entry")


def local_price(
    prefill_tokens_per_s: float, generate_tokens_per_s: float, usd_per_core_hour: float = 0.02, threads: int = 1
) -> tuple[float, float]:
    """What a local model's tokens cost, from the time they take: (price_in, price_out), USD per 1e6 tokens.

    price = usd_per_core_hour * threads / 3600 / tokens_per_s * 1e6, with the prefill speed for prompt tokens and the
    generation speed for completion tokens, both measured with that many threads. usd_per_core_hour: what a core
    costs while it works, energy included; 0.02 is a rented virtual core.
    """
    if not (prefill_tokens_per_s > 0 and generate_tokens_per_s > 0):
        speeds = (prefill_tokens_per_s, generate_tokens_per_s)
        raise ConfigError("tokens_per_s", got=speeds, expected="two speeds in tokens per second, above 0")
    usd_per_s = usd_per_core_hour * threads / 3600
    return usd_per_s / prefill_tokens_per_s * 1e6, usd_per_s / generate_tokens_per_s * 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a model file inside a package, read as data. The package is never imported."""

    package: str
    version: str
    member: str  # path inside the wheel
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalModel:
    """A model file that can be fetched and run here."""

    id: str
    title: str
    file: str  # its name in the folder of models
    bytes: int
    sha256: str
    licence: str
    licence_url: str
    context: int  # tokens the model was made for
    params_b: float
    prefill_tokens_per_s: float  # one thread
    tokens_per_s: float  # generation, one thread
    memory_mb: int
    price_in: float  # USD per 1e6 tokens, from `local_price`
    price_out: float
    url: str = ""  # on a model hub; empty: none
    parts: tuple[Part, ...] = ()  # in order; together they are the file
    offers: frozenset[str] = frozenset()
    embedded: bool = False  # belongs to the pool that `polyroute serve` offers without a configuration
    chat_template: str | None = None  # Jinja text, where the file has none of its own
    notes: str = ""

    def profile(self, context: int | None = None) -> Profile:
        """What a router may know of it. context: tokens per request that its worker allows."""
        return Profile(
            price_in=self.price_in,
            price_out=self.price_out,
            context=min(self.context, context or self.context),
            offers=self.offers,
            tokens_per_s=self.tokens_per_s,
            region="local",
        )

    def candidate(self, context: int | None = None) -> Candidate:
        """This model as something to route to."""
        return Candidate(self.id, profile=self.profile(context))


@dataclass(frozen=True, kw_only=True, slots=True)
class HostedModel:
    """Price and context of a model that others serve."""

    id: str
    price_in: float  # USD per 1e6 prompt tokens
    price_out: float  # USD per 1e6 completion tokens
    price_date: str  # year and month in which the price was true
    source: str
    upstream_model: str | None = None  # the name its provider knows
    context: int | None = None
    params_b: float | None = None
    offers: frozenset[str] = frozenset()

    def profile(self) -> Profile:
        """What a router may know of it."""
        return Profile(price_in=self.price_in, price_out=self.price_out, context=self.context, offers=self.offers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All models of one catalogue file, by id."""

    local: Mapping[str, LocalModel]
    hosted: Mapping[str, HostedModel]
    usd_per_core_hour: float

    def local_model(self, name: str) -> LocalModel:
        """Raises: UnknownNameError with the nearest name."""
        if name not in self.local:
            raise UnknownNameError("local model", name, self.local)
        return self.local[name]

    def profile(self, name: str) -> Profile | None:
        """What is known of a model of that name, local or hosted, by either of a hosted model's names."""
        if name in self.local:
            return self.local[name].profile()
        named = (model for model in self.hosted.values() if name in (model.id, model.upstream_model))
        return next((model.profile() for model in named), None)

    def embedded(self) -> list[LocalModel]:
        """The pool that is offered without a configuration, cheapest first."""
        return sorted((m for m in self.local.values() if m.embedded), key=lambda m: m.price_out)


def read_catalogue(text: str, where: str = "catalogue.toml") -> Catalogue:
    """Raises: ConfigError with the entry's place where a field is missing, unknown, or does not add up."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(where, got=str(problem), expected="TOML") from problem
    rate = float(content.get("usd_per_core_hour", 0.02))
    local = [local_entry(entry, rate, f"{where}: local[{i}]") for i, entry in enumerate(content.get("local", []))]
    listed = enumerate(content.get("hosted", []))
    hosted = [entry_of(HostedModel, entry, f"{where}: hosted[{i}]") for i, entry in listed]
    for group in (local, hosted):
        ids = [model.id for model in group]
        if repeated := sorted({id for id in ids if ids.count(id) > 1}):
            raise ConfigError(where, got=repeated, expected="each id once")
    return Catalogue(local={m.id: m for m in local}, hosted={m.id: m for m in hosted}, usd_per_core_hour=rate)


def local_entry(entry: Mapping[str, Any], rate: float, where: str) -> LocalModel:
    """One local model with its price; its parts must add up to its size, its file must be a plain name."""
    parts = tuple(entry_of(Part, part, f"{where}.parts[{i}]") for i, part in enumerate(entry.get("parts", [])))
    try:
        price_in, price_out = local_price(entry["prefill_tokens_per_s"], entry["tokens_per_s"], rate)
    except KeyError as missing:
        raise ConfigError(f"{where}.{missing.args[0]}", got=None, expected="tokens per second") from None
    model = entry_of(LocalModel, {"price_in": price_in, "price_out": price_out, **entry, "parts": parts}, where)
    if parts and sum(part.bytes for part in parts) != model.bytes:
        raise ConfigError(f"{where}.parts", got=sum(p.bytes for p in parts), expected=f"{model.bytes} bytes together")
    if Path(model.file).name != model.file or model.file in ("", ".", ".."):
        raise ConfigError(f"{where}.file", got=model.file, expected="a file name without a folder")
    return model


def entry_of(kind: type[Entry], entry: Mapping[str, Any], where: str) -> Entry:
    """A dataclass from a table of the file; unknown and missing fields are errors."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every Entry is a dataclass
    for name in entry:
        if name not in names:
            raise UnknownNameError(f"field in {where}:", name, names)
    values = {name: frozenset(value) if name == "offers" else value for name, value in entry.items()}
    try:
        return kind(**values)
    except TypeError as problem:
        raise ConfigError(where, got=sorted(entry), expected=f"all fields of {kind.__name__} ({problem})") from None


@cache
def catalogue() -> Catalogue:
    """The catalogue that ships with polyroute."""
    return read_catalogue(files("polyroute.data").joinpath("catalogue.toml").read_text(encoding="utf-8"))
