"""polyroute check: is this configuration right, and what does it amount to?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyroute.errors import ConfigError
from polyroute.types import Candidate

if TYPE_CHECKING:
    from polyroute.gateway.config import Config

DEFAULT_PATH = Path("polyroute.toml")
EXAMPLE = """examples:
  polyroute check                                 ./polyroute.toml, or the embedded defaults without one
  polyroute check staging.toml --no-env           where the secrets are not
  polyroute check --write-example polyroute.toml  a file to start from, with its schema for editors
  polyroute check --schema                        print the JSON Schema; --schema FILE writes it

Exit code: 0 the file is right (perhaps with warnings), 1 there are warnings and --strict, 2 it is wrong."""


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "check",
        help="validate a configuration and show what it amounts to",
        description="Validate a configuration and show the pool, the policies and what looks odd.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="FILE", help="default: ./polyroute.toml if there is one"
    )
    parser.add_argument("--no-env", action="store_true", help="do not look up the environment variables named in it")
    parser.add_argument("--strict", action="store_true", help="warnings fail the check")
    parser.add_argument(
        "--schema", nargs="?", const="-", metavar="FILE", help="write the JSON Schema (default: print it)"
    )
    parser.add_argument("--write-example", type=Path, metavar="FILE", help="write a configuration to start from")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from polyroute.data.catalogue import catalogue
    from polyroute.gateway.config import load_config, schema

    if args.schema is not None:
        text = json.dumps(schema(), indent=2) + "\n"
        if args.schema == "-":
            print(text, end="")
        else:
            write(Path(args.schema), text)
        return 0
    if args.write_example is not None:
        return write_example(args.write_example)
    path = args.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    config = load_config(path, read_environment=not args.no_env)
    if config.router.artefact != "default":
        from polyroute.gateway.build import load_router

        load_router(config.router.artefact)  # complains of a file that `serve` would refuse
    pool = config.candidates(catalogue().profile)
    warnings = config.warnings_for(pool, catalogue().profile)
    show(config, pool, warnings)
    return 1 if warnings and args.strict else 0


def write(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises: ConfigError rather than write over one."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            str(path), got="a file there already", expected="no file of that name", hint="Name another."
        ) from None
    except OSError as error:
        raise ConfigError(str(path), got=str(error), expected="a place to write to") from None
    print(f"wrote {path}")


def write_example(path: Path) -> int:
    """The example, and beside it the schema that its first line names."""
    from polyroute.gateway.config import schema
    from polyroute.gateway.example import example

    write(path, example())
    beside = path.with_name("polyroute.schema.json")
    beside.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")  # generated: always the current one
    print(f"wrote {beside}\nnext: polyroute check {path}")
    return 0


def show(config: Config, pool: Sequence[Candidate], warnings: Sequence[str]) -> None:
    """Print what the configuration amounts to."""
    server, journal = config.server, config.journal
    keys = len(server.client_keys)
    callers = f"{keys} client key{'s' if keys > 1 else ''}" if keys else "no client keys"
    print(f"configuration  {config.source or 'embedded defaults (no polyroute.toml here)'}")
    print(f"listens        http://{server.host}:{server.port}, {callers}, answers name the {server.answer_model} model")
    print(f"router         {config.router.artefact}")
    print(f"journal        {journal.path}, stores {journal.store}")
    print(f"guards         {', '.join(guard_words(config)) or 'none'}")
    if any(model.backend == "local" for model in config.models):
        from polyroute.pull import models_folder

        print(f"local models   {config.local.cache or models_folder(os.environ)}")
    print()
    head = ["model", "backend", "USD/1e6 in", "out", "context", "offers", "served by"]
    print(*aligned(head, model_rows(config, pool)), sep="\n")
    print()
    print(*aligned(["policy", "worth", "explores", "among"], policy_rows(config)), sep="\n")
    print()
    for warning in warnings:
        print(f"warning: {warning}")
    print("ok" + (f", with {len(warnings)} warning{'s' if len(warnings) > 1 else ''}" if warnings else ""))


def guard_words(config: Config) -> list[str]:
    """Each guard and what it does: "pii refuses", "language restricts to a, b"."""
    words = {"refuse": "refuses", "flag": "flags", "restrict": "restricts to"}
    return [
        f"{name} {words[guard.action]}" + (f" {' or '.join(guard.models)}" if guard.models else "")
        for name, guard in config.guards.items()
    ]


def model_rows(config: Config, pool: Sequence[Candidate]) -> list[list[str]]:
    """One row a model."""
    rows = []
    for model, one in zip(config.models, pool, strict=True):
        profile = one.profile
        by = {
            "openai": f"{model.url} ({model.served_name})",
            "local": model.file or model.id,
            "replay": str(model.table),
        }
        price = [f"{price:.4g}" for price in (profile.price_in, profile.price_out)]
        context = "not known" if profile.context is None else str(profile.context)
        rows.append([model.id, model.backend, *price, context, " ".join(sorted(profile.offers)), by[model.backend]])
    return rows


def policy_rows(config: Config) -> list[list[str]]:
    """One row a policy."""
    rows = []
    for name, policy in config.policies.items():
        weights = ", ".join(f"{metric} {weight:g}" for metric, weight in (policy.weights or {}).items())
        limits = [f"{policy.budget_usd_per_request:g} USD a request"] if policy.budget_usd_per_request else []
        limits += [f"within {policy.deadline_s:g} s"] if policy.deadline_s else []
        explore = f"epsilon {policy.epsilon:g}" if policy.explore == "epsilon" else policy.explore
        worth = ", ".join([weights or f"trade_off {policy.trade_off:g}", *limits])
        among = " ".join(policy.models or ["all"]) + (
            f", needs {' '.join(sorted(policy.needs))}" if policy.needs else ""
        )
        rows.append([name, worth, explore, among])
    return rows


def aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table with aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
