"""polyroute convert: the files of other routing benchmarks as tables that fit, eval, predict and bench read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from polyroute.cli.tables import writable
from polyroute.data.formats.convert import FORMATS, convert

EXAMPLE = """examples:
  polyroute convert routerbench_0shot.parquet -o routerbench.parquet
  polyroute convert results/bench -o llmrouterbench.parquet
  polyroute convert routellm/evals/mmlu/responses --prices models.json -o mmlu.parquet
  polyroute fit routerbench.parquet --router default -o r.npz

Formats: routerbench (wide CSV or Parquet), routellm (CSV of prompts and two models), llmrouterbench (folder of JSON),
routerarena (JSON Lines per model), embedllm (CSV train, val, test), gqr (labelled texts). The format is told from the
fields. A source without splits gets 70 % train, 10 % valid, 20 % test by a hash of the text. Pickles are never opened;
RouterBench ships as one, and the message says how to convert it where you trust it."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn the files of another benchmark into a table",
        description="Turn the files of another routing benchmark into one Parquet table.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file, or folder of files")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.parquet", help="file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: told from the fields")
    parser.add_argument("--prices", type=Path, metavar="models.json", help="for sources that state no costs")
    parser.add_argument("--new-splits", action="store_true", help="draw splits anew, though the source has its own")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    writable("--output", args.output, ".parquet", read=[args.source])
    done = convert(args.source, args.output, args.format, prices=args.prices, new_splits=args.new_splits)
    models = f", {done.models} models" if done.models else ""
    print(f"wrote {args.output}: {done.queries:,} queries{models}, from {done.format}")
    for note in done.notes:
        print(f"  {note}")
    print(json.dumps({"command": "convert", "output": str(args.output), **done._asdict()}))
    return 0
