"""The command line: one file a command. A command's module is imported only when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from polyroute import __version__
from polyroute.errors import PolyrouteError, nearest

COMMANDS = {
    "serve": "run the gateway: an OpenAI-compatible server that routes",
    "check": "read a configuration and say what it would do",
    "route": "show the decision for a text, without calling a model",
    "convert": "turn the files of another benchmark into a table",
    "fit": "fit a router on recorded outcomes",
    "eval": "replay recorded outcomes through a fitted router, beside honest baselines",
    "predict": "choose a model for each query of a table",
    "bench": "every router on every table, and the page of results",
    "calibrate": "measure a model with self-checking questions and fit its profile",
    "models": "list, fetch and remove local models",
    "journal": "look into the gateway's record of decisions and outcomes",
    "systems": "list the published systems, their parts and their state",
    "prove": "run the proof of one system",
}


def parser(command: str | None) -> argparse.ArgumentParser:
    """The parser with the arguments of one command filled in, the others as names only."""
    top = argparse.ArgumentParser(
        prog="polyroute",
        description="Learned routing at every scale: one library, one gateway.",
        epilog="Start with: polyroute models pull qwen2.5-coder-0.5b && polyroute serve",
    )
    top.add_argument("--version", action="version", version=f"polyroute {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == command:
            import_module(f"polyroute.cli.{name}").add(commands)
        else:
            commands.add_parser(name, help=summary)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error on purpose is one line, not a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        near = nearest(command, COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        print(f"polyroute: unknown command {command!r}; expected one of {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    args = parser(command).parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except PolyrouteError as error:
        print(f"polyroute {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `polyroute ... | head` is no error
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder nobody may write to, a file that vanished
        where = f"{error.filename}: " if error.filename else ""
        print(f"polyroute {args.command}: {where}expected to read or write it, got {error.strerror or error}. "
              f"Check the path, its permissions and the space left.", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print(f"polyroute {args.command}: stopped", file=sys.stderr)
        return 130
