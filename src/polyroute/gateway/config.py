"""The gateway's configuration: one TOML file, every key known, every value checked before anything starts.

`load_config(path)` reads it; without a path the embedded defaults serve two local models. A key nobody reads is an
error with a suggestion; secrets are references to the environment and are never printed. See docs/configuration.md.
"""
# ruff: noqa: RUF009  # `option` makes a dataclass field, not a value

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias

from polyroute.errors import ConfigError, nearest
from polyroute.gateway.config_faults import faults, is_path, pool_warnings, warnings
from polyroute.gateway.guards import GuardConfig
from polyroute.gateway.schema import json_schema
from polyroute.gateway.strict import Reader, Secret, check, option
from polyroute.gateway.transport import Timeouts
from polyroute.types import Candidate, Profile

Lookup: TypeAlias = Callable[[str], Profile | None]  # what the catalogue knows of a model of that name
NAME = r"[^\s\x00-\x1f\x7f]{1,200}"
METRICS = ("quality", "cost", "latency", "output_tokens")
EMBEDDED = ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")  # names of the catalogue
VIRTUAL: Mapping[str, float] = {"auto": 0.3, "auto:cheap": 3.0, "auto:best": 0.0}  # name -> trade-off
SECONDS = {"above": 0, "unit": "seconds", "infinite": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where the gateway listens and who may call."""

    host: str = option("Address to listen on; 0.0.0.0 for every interface.", "127.0.0.1", pattern=r"\S+")
    port: int = option("Port to listen on; 0 takes a free one.", 8080, least=0, most=65535)
    max_body_mb: float = option("Largest request body taken.", 20.0, above=0, most=1024, unit="MiB")
    client_keys: tuple[Secret, ...] = option("Keys clients must send; none: whoever can connect may call.", ())
    allow_origins: tuple[str, ...] = option(
        "Origins of web pages that may call from a browser, as in [\"https://chat.example.org\"]; `*` for any.", (),
        pattern=r"(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+)",
    )  # fmt: skip
    answer_model: Literal["concrete", "requested"] = option(
        "The model named in answers: the one that served, or the one the client asked for.", "concrete"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """What predicts quality, cost and latency."""

    artefact: str = option("`default` for the one that ships, or a file that `polyroute fit` wrote.", "default")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalConfig:
    """Where decisions and outcomes are written down."""

    path: Path = option("SQLite file; its folder is made.", Path(".polyroute/journal.sqlite"))
    store: Literal["features", "prompts", "nothing"] = option(
        "What is kept of a request beside the decision: its embedding, its text too, or neither.", "features"
    )
    capacity: int = option("Records that may wait while the file cannot be written.", 20_000, least=1, most=10_000_000)
    flush_s: float = option("Time between two writes.", 0.05, above=0, most=60, unit="seconds")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig:
    """How models run on this machine."""

    threads: int = option("CPU threads a model may use.", 1, least=1, most=1024)
    context: int = option("Tokens of one request, prompt and answer together.", 4096, least=256, most=10_000_000)
    slots: int = option("Requests a model answers at the same time.", 4, least=1, most=1024)
    cache: Path | None = option(
        "Folder of model files. Default: where `polyroute models pull` puts them, ~/.cache/polyroute/models.", None
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A model requests may be sent to."""

    id: str = option("The name clients and policies use.", pattern=NAME)
    backend: Literal["openai", "local", "replay"] = option(
        "A server that speaks the OpenAI protocol, a GGUF file run here, or answers recorded in a table.", "openai"
    )
    url: str | None = option("Base URL as an OpenAI client takes it, as in https://api.openai.com/v1.", None)
    api_key: Secret | None = option("The server's key.", None)
    upstream_model: str | None = option("The name the server or the table knows. Default: id.", None, pattern=NAME)
    file: str | None = option("Path of a .gguf file, or a name of `polyroute models list`. Default: id.", None)
    table: Path | None = option("Parquet table of recorded answers.", None)
    price_in: float | None = option("Default: the catalogue's.", None, least=0, unit="USD per 1e6 prompt tokens")
    price_out: float | None = option("Default: the catalogue's.", None, least=0, unit="USD per 1e6 completion tokens")
    context: int | None = option("Tokens of one request. Default: the catalogue's.", None, least=1)
    offers: frozenset[str] | None = option(
        "Capabilities, as in [\"tools\", \"vision\", \"json\"]; a request that needs another goes elsewhere. "
        "Default: the catalogue's.", None,
    )  # fmt: skip
    region: str | None = option("Where the data goes.", None)
    ability: Mapping[str, float] = option("Skill -> logit, where it has been measured.", dict)
    tokens_per_s: float | None = option("Generation speed. Default: the catalogue's.", None, above=0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def served_name(self) -> str:
        """The name the backend knows."""
        return self.upstream_model or self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """A virtual model: what a choice is worth, and who may be chosen."""

    trade_off: float | None = option(
        "Quality given up to save the price of the reference request (600 prompt and 200 completion tokens) at the "
        "dearest model; 0: the best whatever it costs. Default: 0.3.", None, least=0,
    )  # fmt: skip
    weights: Mapping[str, float] | None = option(
        "Utility of a unit of each metric, in place of trade_off: quality 0..1, cost USD, latency s.", None
    )
    explore: Literal["none", "epsilon", "ucb", "thompson"] = option("How often another than the best is tried.", "none")
    epsilon: float = option('Share of requests that explore = "epsilon" gives to chance.', 0.05, above=0, most=1)
    budget_usd_per_request: float | None = option("Mean spend to keep to.", None, above=0, unit="USD")
    deadline_s: float | None = option("Prefer models expected to answer within this time.", None, above=0)
    sticky: float = option(
        "Utility another model must gain to take over a conversation, half of it for the lost cache; 0: each turn is "
        "decided anew. Within a tool loop the model stays.", 0.1, least=0,
    )  # fmt: skip
    read_answers: bool | None = option(
        "Read an answer, and pay for another model's only where that is worth it; whole chats only, not streams. "
        "Needs a router fitted with --router cascade. Default: where the router is one.", None
    )  # fmt: skip
    models: tuple[str, ...] | None = option("Ids that may be chosen. Default: all.", None)
    needs: frozenset[str] = option("Capabilities every request of this policy needs.", frozenset())

    def __post_init__(self) -> None:
        check(self)
        if self.weights is not None and self.trade_off is not None:
            raise ConfigError("weights", got="both", expected="either trade_off or weights", hint="Remove one of them.")
        for metric, weight in (self.weights or {}).items():
            if metric not in METRICS:
                near = nearest(metric, METRICS)
                raise ConfigError(
                    f"weights.{metric}", got=metric, expected=f"a metric ({', '.join(METRICS)})",
                    hint=f"Did you mean {near!r}?" if near else "",
                )  # fmt: skip
            if not isfinite(weight):
                raise ConfigError(f"weights.{metric}", got=weight, expected="a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The whole configuration, as it takes effect."""

    server: ServerConfig = option("Where the gateway listens and who may call.", ServerConfig)
    router: RouterConfig = option("What predicts quality, cost and latency.", RouterConfig)
    journal: JournalConfig = option("Where decisions and outcomes are written down.", JournalConfig)
    timeouts: Timeouts = option(
        "How long each phase of a call to a model may take, in seconds; inf lifts a limit.",
        Timeouts,
        each={
            "connect_s": {"about": "A connection: DNS, TCP and TLS together.", **SECONDS},
            "first_byte_s": {"about": "From the request sent to the first byte of the answer.", **SECONDS},
            "idle_s": {"about": "Silence within an answer.", **SECONDS},
            "total_s": {"about": "The whole call.", **SECONDS},
        },
    )
    local: LocalConfig = option("How models run on this machine.", LocalConfig)
    models: tuple[ModelConfig, ...] = option("The pool. Without any: two small local models.", ())
    policies: Mapping[str, PolicyConfig] = option(
        "Virtual models by name; `auto`, `auto:cheap` and `auto:best` always exist.", dict
    )
    guards: Mapping[str, GuardConfig] = option(
        "What a request's text may hold; without any, nothing is looked for.", dict
    )
    source: Path | None = field(default=None)  # the file; None: embedded defaults
    warnings: tuple[str, ...] = field(default=())  # what is legal and perhaps not meant

    def candidates(self, lookup: Lookup) -> list[Candidate]:
        """The pool as the router sees it: what is not given here comes from the catalogue.

        Raises: ConfigError for a local model that is neither a file nor in the catalogue.
        """
        return [candidate(model, i, self.local, lookup) for i, model in enumerate(self.models)]

    def listening(self, host: str | None, port: int | None) -> Config:
        """The same with another address, where one is given: what a command line may say, warned about like a file."""
        old = self.server
        server = replace(old, host=old.host if host is None else host, port=old.port if port is None else port)
        done = replace(self, server=server)
        return replace(done, warnings=tuple(warnings(done)))

    def warnings_for(self, pool: list[Candidate], lookup: Lookup) -> list[str]:
        """`warnings`, and those that need the pool: unknown prices and capabilities, needs that nobody meets."""
        return [*self.warnings, *pool_warnings(self, pool, lookup)]


class ConfigErrors(ConfigError):
    """All problems of a file at once. errors: each with its path; `path`, `got`, `expected` are the first one's."""

    def __init__(self, where: str, errors: list[ConfigError]):
        first = errors[0]
        super().__init__(first.path, got=first.got, expected=first.expected, hint=first.hint)
        self.where, self.errors = where, errors
        lines = [str(error) for error in errors]
        self.args = (f"{where}: " + (lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems", *lines])),)


def load_config(
    path: Path | str | None = None, *, environment: Mapping[str, str] | None = None, read_environment: bool = True
) -> Config:
    """Read a configuration file; None: the embedded defaults.

    environment: where `env:NAME` is looked up, os.environ unless given; read_environment False leaves secrets unread,
    for checking a file where they are not. Relative paths start from the file's folder.
    Raises: ConfigError naming the path, what was expected, what came, and what may have been meant.
    """
    if path is None:
        return complete(Config(), Path.cwd(), None)
    source = Path(path)
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"Write one with: polyroute check --write-example {source}"
        raise ConfigError(str(source), got="no such file", expected="a TOML file", hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(str(source), got=str(error), expected="a readable TOML file") from None
    environment = os.environ if environment is None else environment
    reader = Reader(source.absolute().parent, environment if read_environment else None)
    config = reader.document(Config, content)
    problems = reader.problems
    if config is not None:
        config = complete(config, reader.base, source)
        problems = list(faults(config))
    if config is None or problems:
        raise ConfigErrors(str(source), problems)
    return config


def complete(config: Config, base: Path, source: Path | None) -> Config:
    """Everything that goes without saying, said: the default pool and policies, and absolute paths."""
    models = config.models or tuple(ModelConfig(id=name, backend="local") for name in EMBEDDED)
    models = tuple(
        replace(model, file=model.file and located(model.file, base)) if is_path(model.file) else model
        for model in models
    )
    policies = {name: PolicyConfig(trade_off=trade_off) for name, trade_off in VIRTUAL.items()}
    for name, policy in config.policies.items():
        unsaid = policy.trade_off is None and policy.weights is None
        policies[name] = replace(policy, trade_off=VIRTUAL.get(name, VIRTUAL["auto"])) if unsaid else policy
    artefact = config.router.artefact
    done = replace(
        config,
        router=RouterConfig(artefact=artefact if artefact == "default" else located(artefact, base)),
        journal=replace(config.journal, path=Path(located(str(config.journal.path), base))),
        models=models,
        policies=policies,
        source=source,
    )
    return replace(done, warnings=tuple(warnings(done)))


def located(path: str, base: Path) -> str:
    """A path made absolute: ~ is the home folder, a relative one starts from `base`."""
    return str((base / Path(path).expanduser()).absolute())


def candidate(model: ModelConfig, i: int, local: LocalConfig, lookup: Lookup) -> Candidate:
    """One model as a candidate; the configuration wins over the catalogue, field by field."""
    known = known_profile(model, lookup)
    if model.backend == "local" and known is None and not is_path(model.file):
        raise ConfigError(
            f"models[{i}].file", got=model.file or model.id, expected="a .gguf file or a name of the catalogue",
            hint="See `polyroute models list`.",
        )  # fmt: skip
    known = known or Profile()
    context = known.context if model.context is None else model.context
    if model.backend == "local":
        context = min(context or local.context, local.context)
    return Candidate(
        model.id,
        profile=replace(
            known,
            price_in=known.price_in if model.price_in is None else model.price_in,
            price_out=known.price_out if model.price_out is None else model.price_out,
            context=context,
            offers=known.offers if model.offers is None else model.offers,
            region=model.region or known.region or ("local" if model.backend == "local" else None),
            ability=dict(model.ability) or known.ability,
            tokens_per_s=model.tokens_per_s or known.tokens_per_s,
        ),
    )


def known_profile(model: ModelConfig, lookup: Lookup) -> Profile | None:
    """What the catalogue says of a model, under the most exact of its names."""
    names = (model.file, model.id) if model.backend == "local" else (model.upstream_model, model.id)
    found = (lookup(name) for name in names if name and not (name == model.file and is_path(name)))
    return next((profile for profile in found if profile is not None), None)


def schema() -> dict[str, object]:
    """JSON Schema (2020-12) of the file, for editors."""
    return json_schema(Config, "polyroute.toml: the configuration of the polyroute gateway")
