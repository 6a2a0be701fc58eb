"""A configuration to start from: every section with its defaults, and the pool and policies as one would write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby

from polyroute.gateway.config import Config
from polyroute.gateway.schema import Key, keys

HEAD = """\
#:schema ./polyroute.schema.json
# polyroute's configuration. Check it:  polyroute check polyroute.toml
# Serve it:                             polyroute serve polyroute.toml
# Every key from [server] to [local] stands at its default and may be left out; docs/configuration.md has them all.
"""

POOL = """\
# The pool. Two small models that run on this machine; `polyroute models pull --all` fetches their files.
[[models]]
id = "qwen2.5-coder-0.5b"
backend = "local"

[[models]]
id = "qwen2.5-coder-1.5b"
backend = "local"

# A server that speaks the OpenAI protocol, hosted or your own. Prices in USD per million tokens.
# [[models]]
# id = "large"
# url = "https://api.openai.com/v1"
# api_key = "env:OPENAI_API_KEY"          # secrets by reference to the environment only
# upstream_model = "gpt-4o"               # the name the server knows
# price_in = 2.5
# price_out = 10.0
# context = 128000
# offers = ["tools", "vision", "json"]

# Virtual models: clients send the name as `model`. These three always exist:
#   auto        trade_off 0.3
#   auto:cheap  trade_off 3.0
#   auto:best   trade_off 0.0
# trade_off: quality given up to save the price of a reference request at the dearest model of the pool.
[policies.auto]
trade_off = 0.3

# One of your own: what a unit of each metric is worth (quality 0..1, cost in USD, latency in seconds).
# [policies.interactive]
# weights = { quality = 1.0, cost = -150.0, latency = -0.02 }
# explore = "thompson"                    # now and then another than the best, to learn what it yields
# budget_usd_per_request = 0.002
# deadline_s = 5.0

# Guards look at a request's text before a model is chosen; without any, nothing is looked for.
# [guards.pii]
# action = "restrict"                     # or "flag", or "refuse"
# models = ["qwen2.5-coder-0.5b"]         # personal data and secrets stay here
"""


def example() -> str:
    """The text of a polyroute.toml that serves the embedded pool."""
    return "\n".join([HEAD, *sections(), POOL])


def sections() -> Iterator[str]:
    """The sections of plain values, each key with its meaning and its default."""
    for where, group in groupby(keys(Config), key=lambda key: key.section):
        if where.startswith("[[") or "NAME" in where:
            continue
        yield "\n".join([where, *(line for key in group for line in lines_of(key)), ""])


def lines_of(key: Key) -> Iterator[str]:
    """A key with what it means above it; one without a default is commented out."""
    yield f"# {key.about}"
    yield f"# {key.name} = ..." if key.default is None else f"{key.name} = {json.dumps(key.default)}"


def reference() -> str:
    """Every key of every section as Markdown tables, for docs/configuration.md."""
    parts = []
    for where, group in groupby(keys(Config), key=lambda key: key.section):
        rows = [
            f"| `{key.name}` | {key.kind.replace('|', chr(92) + '|')} | {shown(key)} | {key.about.replace('|', '/')} |"
            for key in group
        ]
        parts.append(
            "\n".join([f"### `{where}`", "", "| key | value | default | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def shown(key: Key) -> str:
    """A default as it is written in the file."""
    return "" if key.default is None else f"`{json.dumps(key.default)}`"
