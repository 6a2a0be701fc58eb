"""polyroute calibrate: measure a model with self-checking questions and fit its profile."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyroute.cli.arguments import seed_of
from polyroute.cli.check import DEFAULT_PATH, aligned
from polyroute.cli.progress import Steps, say
from polyroute.data.catalogue import catalogue, local_price
from polyroute.data.probes import FAMILIES, LEVELS, Probe, probes
from polyroute.errors import ConfigError, MissingExtraError, UnknownNameError, UpstreamError

if TYPE_CHECKING:
    from polyroute.gateway.config import Config, ModelConfig
    from polyroute.gateway.probing import Answer, Speeds
    from polyroute.gateway.profiles import Measured

EXAMPLE = """examples:
  polyroute calibrate qwen2.5-coder-0.5b                       a local model
  polyroute calibrate large --config polyroute.toml            a model of a configuration
  polyroute calibrate llama-3.1-8b --url http://127.0.0.1:8000/v1 --api-key env:MY_KEY
  polyroute calibrate large --per-level 5 --save answers.json  more sure; Ctrl-C keeps what was answered,
                                                               and the same command goes on from there

{count} questions for each --per-level, {levels} levels of each family: {families}.
Most are made up from --seed, so no model has seen them, and all check themselves. A hosted model bills their tokens."""


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "calibrate",
        help="measure a model with self-checking questions and fit its profile",
        description="Ask a model a few dozen self-checking questions and fit the profile that routers read.",
        epilog=EXAMPLE.format(count=LEVELS * len(FAMILIES), levels=LEVELS, families=", ".join(FAMILIES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a model of the configuration or of `polyroute models list`; any name with --url")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ./polyroute.toml if there is one")
    parser.add_argument("--url", help="base URL of an OpenAI-compatible server that has the model")
    parser.add_argument("--api-key", metavar="env:NAME", help="the variable that holds the server's key")
    parser.add_argument("--per-level", type=int, default=2, metavar="N", help="questions each (default: %(default)s)")
    parser.add_argument("--seed", type=seed_of, default=0, help="of the questions (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of an answer (default: %(default)s)")
    parser.add_argument("--at-once", type=int, metavar="N", help="questions under way (default: 4, local models 1)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep every question and answer, also when stopped")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: where `polyroute serve` looks")
    parser.add_argument("--json", action="store_true", help="print the profile as one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from polyroute.gateway.build import profiles_folder
        from polyroute.gateway.config import load_config
        from polyroute.gateway.profiles import profile_path, write_profile
        from polyroute.gateway.records import plain
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "msgspec", "gateway") from None
    for name in ("per_level", "max_tokens", "at_once"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", got=getattr(args, name), expected="1 or more")
    path = args.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    config = load_config(path, read_environment=False)
    model = wanted(args, config)
    answers = interview(args, config, model)
    enough(answers, model.id)
    measured, speeds = measured_from(answers, args, config, model)
    usual = profile_path(profiles_folder(config), model.id)
    target = args.output or usual
    write_profile(measured, target)
    if args.json:
        print(json.dumps(plain(measured)))
    else:
        show(answers, measured, speeds)
    in_use = target.absolute() == usual.absolute()
    say(f"wrote {target}" + ("; `polyroute serve` reads it unless the configuration gives `ability`" * in_use))
    return 0


def wanted(args: argparse.Namespace, config: Config) -> ModelConfig:
    """The model that is meant, with its own key read and no other. Raises: UnknownNameError, ConfigError."""
    from polyroute.gateway.config import ModelConfig
    from polyroute.gateway.strict import REFERENCE, Secret

    if args.api_key is not None and not args.url:
        raise ConfigError("--api-key", got="no --url", expected="both, or a model of the configuration")
    if args.url:
        reference = REFERENCE.fullmatch(args.api_key) if args.api_key else None
        if args.api_key and reference is None:
            hint = "Put the key into a variable and name that."
            raise ConfigError("--api-key", got="a value (not shown)", expected="env:NAME", hint=hint)
        model = ModelConfig(id=args.model, url=args.url, api_key=reference and Secret(reference[1], None))
    else:
        mine = {model.id: model for model in config.models}
        local = catalogue().local
        if args.model not in mine and args.model not in local:
            raise UnknownNameError("model", args.model, {*mine, *local})
        model = mine.get(args.model) or ModelConfig(id=args.model, backend="local")
    if model.api_key is None:
        return model
    if (key := os.environ.get(model.api_key.name)) is None:
        raise ConfigError(f"env:{model.api_key.name}", got="a variable that is not set", expected="the server's key")
    return replace(model, api_key=Secret(model.api_key.name, key))


def interview(args: argparse.Namespace, config: Config, model: ModelConfig) -> list[Answer]:
    """Ask, with progress on stderr; what --save holds already is not asked again. Ctrl-C keeps what was answered."""
    from polyroute.gateway.answered import restored, save_answers

    asked = list(probes(args.per_level, np.random.default_rng(args.seed)))
    header = {"model": model.id, "seed": args.seed, "limit": args.max_tokens}
    done = restored(args.save, header, asked) if args.save else []
    if done:
        say(f"{len(done)} of {len(asked)} answers are in {args.save}")
    have = {answer.id for answer in done}
    left = [probe for probe in asked if probe.id not in have]
    try:
        with Steps(f"asking {model.id}", len(asked), after_s=0.5) as steps:
            asyncio.run(conversed(args, config, model, left, done, steps))
    except KeyboardInterrupt:
        kept = f"are kept in {args.save}; the same command goes on from there" if args.save else "are lost; see --save"
        say(f"stopped: {sum(a.score is not None for a in done)} of {len(asked)} answers {kept}")
        raise
    finally:
        if args.save and done:
            save_answers(done, header, args.save)
    order = {probe.id: i for i, probe in enumerate(asked)}
    return sorted(done, key=lambda answer: order[answer.id])


async def conversed(
    args: argparse.Namespace, config: Config, model: ModelConfig, left: Sequence[Probe], done: list[Answer],
    steps: Steps,
) -> None:  # fmt: skip
    """Put the questions that are left, over the gateway's own backend and transport; answers go to `done`."""
    from polyroute.gateway.backends.build import backend_of
    from polyroute.gateway.client import Client, ClientConfig
    from polyroute.gateway.dial import proxies_from
    from polyroute.gateway.probing import Interview
    from polyroute.pull import models_folder

    def tell(answer: Answer) -> None:
        done.append(answer)
        right = sum(a.score or 0.0 for a in done)
        steps.at(len(done), f"{right:.0f} right, {sum(a.score is None for a in done)} failed")

    transport = Client(ClientConfig(proxies=proxies_from(os.environ)))
    folder = config.local.cache or models_folder(os.environ)
    logs = config.journal.path.parent / "logs"
    backend = backend_of(model, f"models.{model.id}", config.local, transport, folder, logs)
    try:
        status = await backend.status()
        if status.state == "down":
            raise UpstreamError("missing", f"{model.id}: {status.detail}")
        at_once = args.at_once or (1 if model.backend == "local" else 4)
        await Interview(
            backend=backend, model=model.served_name, limit=args.max_tokens, at_once=at_once, tell=tell
        ).ask(left)
    finally:
        await backend.close()
        await transport.close()


def enough(answers: Sequence[Answer], model: str) -> None:
    """Say what failed. Raises: UpstreamError where that is more than half of what was asked."""
    failed = Counter(answer.problem for answer in answers if answer.score is None)
    if not failed:
        return
    count, (problem, times) = failed.total(), failed.most_common(1)[0]
    told = f"{count} of {len(answers)} questions to {model} got no answer; {times} times: {problem}"
    if 2 * count > len(answers):
        raise UpstreamError("protocol", told)
    say(f"warning: {told}; they do not count")


def measured_from(
    answers: Sequence[Answer], args: argparse.Namespace, config: Config, model: ModelConfig
) -> tuple[Measured, Speeds]:
    """The profile: abilities on the scale of the configured router, or of the cold start where that reads none."""
    from polyroute.gateway.build import load_router
    from polyroute.gateway.probing import speeds_of
    from polyroute.gateway.profiles import Asked, Measured, abilities, part_with
    from polyroute.signals import featuriser

    fitted = load_router(config.router.artefact)
    if (reader := part_with(fitted.router, "measure")) is None:
        say(f"note: the router {fitted.name!r} reads no abilities; these are on the cold start's scale")
        fitted = load_router("default")
        reader = part_with(fitted.router, "measure")
    assert reader is not None
    questions = [Asked(a.prompt, a.score) for a in answers if a.score is not None]
    ability, std = abilities(reader, featuriser(fitted.features), questions)
    speeds = speeds_of(answers)
    price_in = price_out = None
    if model.backend == "local" and speeds.prefill and speeds.generate:
        rate = catalogue().usd_per_core_hour
        price_in, price_out = local_price(speeds.prefill, speeds.generate, rate, config.local.threads)
    return Measured(
        model=model.id, time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), artefact=fitted.fingerprint,
        ability=ability, ability_std=std, questions=questions, tokens_per_s=rounded(speeds.generate, 1),
        first_token_s=rounded(speeds.first_token_s, 3), price_in=rounded(price_in, 4),
        price_out=rounded(price_out, 4), seed=args.seed, per_level=args.per_level,
    ), speeds  # fmt: skip


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def show(answers: Sequence[Answer], measured: Measured, speeds: Speeds) -> None:
    """Right over asked, abilities, speed, and lines for the configuration."""
    heard = [answer for answer in answers if answer.score is not None]
    print(*aligned(["right/asked", *(f"level {n}" for n in range(1, LEVELS + 1)), "all"], counts(heard)), sep="\n")
    print()
    rows = [[skill, f"{logit:+.2f} +- {measured.ability_std:.2f}"] for skill, logit in measured.ability.items()]
    print(*aligned(["skill", "ability, logits"], rows), sep="\n")
    print()
    latency = [a.latency_s for a in heard if a.latency_s is not None]
    if latency:
        print(f"latency    median {np.median(latency):.2f} s, slowest tenth {np.quantile(latency, 0.9):.2f} s")
    speed = "not known" if speeds.generate is None else f"{speeds.generate:.1f} tokens/s"
    print(f"generates  {speed} ({speeds.source})")
    if speeds.prefill:
        print(f"reads      {speeds.prefill:.1f} tokens/s")
    if cut := sum(answer.cut for answer in heard):
        print(f"cut short  {cut} answers ended at the limit of tokens (--max-tokens)")
    print(f"\n# for [[models]] id = {json.dumps(measured.model)}, if it shall not depend on the profile file")
    print(*toml_lines(measured), sep="\n")


def counts(heard: Sequence[Answer]) -> list[list[str]]:
    """One row a family: right/asked at each level and together."""
    families = list(dict.fromkeys(answer.family for answer in heard))

    def cell(family: str | None, level: int | None) -> str:
        some = [a.score or 0.0 for a in heard if family in (None, a.family) and level in (None, a.level)]
        return f"{sum(some):g}/{len(some)}"

    levels = [*range(1, LEVELS + 1), None]
    return [[family or "all", *(cell(family, level) for level in levels)] for family in [*families, None]]


def toml_lines(measured: Measured) -> list[str]:
    """What to paste into a model's entry."""
    pairs = ", ".join(f"{toml_key(skill)} = {logit:.3f}" for skill, logit in measured.ability.items())
    lines = [f"ability = {{ {pairs} }}"]
    for name in ("tokens_per_s", "price_in", "price_out"):
        if (value := getattr(measured, name)) is not None:
            lines.append(f"{name} = {value}")
    return lines


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
