"""docs/results/expert.md, from a run of bench_moe and the rows of docs/systems.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SYSTEMS = Path(__file__).resolve().parent.parent / "docs" / "systems.toml"
ALL_CELLS = 48
LIMITS = {8: 1.15, 16: 1.15, 32: 1.35, 64: 1.5}  # of the dense layer's time at T = 8,192, by number of experts


class Target(NamedTuple):
    """What was wanted and what came."""

    name: str
    limit: str
    measured: float | None  # None: not measured in this run
    met: bool | None


def targets(result: Mapping[str, Any]) -> list[Target]:
    """Every target of the speed and memory of expert layers beside what a run reached."""
    worst = {int(e): value for e, value in result["worst_of_limit_fwd_bwd"].items()}  # as read from JSON or made here
    slope = result["product_key_slope"]
    return [
        _least("speed over transformers' best backend, slowest cell", 1.0, result["least_speedup_fwd_bwd"]),
        _least("speed over transformers' best backend, geometric mean", 1.2, result["geomean_speedup_fwd_bwd"]),
        *(_most(f"of the dense limit at T = 8,192, worst cell of E = {e}", most, worst.get(e))
          for e, most in LIMITS.items()),
        _most("router's share of the layer, largest", 0.1, result["largest_router_share"]),
        _most("peak memory over the dense layer's, largest", 1.2, result["largest_memory_ratio"]),
        _most("product keys: slope of log time on log E (square root: 0.5)", 0.5, slope),
    ]  # fmt: skip


def _least(name: str, limit: float, got: float | None) -> Target:
    return Target(name, f">= {limit}", got, None if got is None else got >= limit)


def _most(name: str, limit: float, got: float | None) -> Target:
    return Target(name, f"<= {limit}", got, None if got is None else got <= limit)


def verdict(target: Target) -> str:
    """One word or two for people."""
    return "not measured" if target.met is None else "met" if target.met else "MISSED"


def page(result: Mapping[str, Any]) -> str:
    """The page as text."""
    return "\n".join([*_head(result), *_speed(result), *_rest(result), *_proofs()]) + "\n"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    facts = result["machine"]
    yield "# Expert scale: results"
    yield ""
    yield "Written by `make bench-moe` (speed) and from `docs/systems.toml` (proofs, `polyroute prove ID --seed 0`)."
    yield f"Machine: {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']},"
    yield f"load {facts['load']}, stolen {facts['steal']} %. All times of one run, the least of its repeats."
    yield f"{len(result['rows'])} of {ALL_CELLS} cells" + (" (`--quick`)." if len(result["rows"]) < ALL_CELLS else ".")
    yield ""


def _speed(result: Mapping[str, Any]) -> Iterator[str]:
    yield "## Speed, forward + backward"
    yield ""
    yield f"Geometric mean over transformers' best backend of each cell: **{result['geomean_speedup_fwd_bwd']}**"
    yield f"(forward alone {result['geomean_speedup_fwd']}); the least of all cells: {result['least_speedup_fwd_bwd']}."
    yield ""
    yield "| target | limit | measured | |"
    yield "|---|---:|---:|---|"
    for target in targets(result):
        yield f"| {target.name} | {target.limit} | {target.measured} | {verdict(target)} |"
    yield ""
    yield "| T | D | F | E | K | limit, ms | polyroute, ms | best of transformers, ms | naive, ms | of the limit |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for r in result["rows"]:
        ms = {name: pair[1] for name, pair in r["ms"].items()}
        theirs = min(ms["grouped_mm"], ms["eager"])
        cell = f"| {r['tokens']:,} | {r['dim']} | {r['width']} | {r['experts']} | {r['k']} "
        yield f"{cell}| {ms['limit']} | {ms['polyroute']} | {theirs} | {ms['naive']} | {r['of_limit'][1]} |"
    yield ""


def _rest(result: Mapping[str, Any]) -> Iterator[str]:
    yield "| E | of the limit at T = 8,192, geometric mean | worst cell |"
    yield "|---:|---:|---:|"
    for e, mean in result["geomean_of_limit_fwd_bwd"].items():
        yield f"| {e} | {mean} | {result['worst_of_limit_fwd_bwd'][e]} |"
    yield ""
    yield f"Largest share of the router: {100 * result['largest_router_share']:.1f} %. Largest peak memory over the"
    yield f"dense layer's, weight gradients left out: {result['largest_memory_ratio']}. Time of a product-key router"
    yield f"over the number of experts: log-log slope {result['product_key_slope']} (0.5: square root)."
    yield ""


def _proofs() -> Iterator[str]:
    rows = tomllib.loads(SYSTEMS.read_text(encoding="utf-8"))["system"]
    yield "## Proofs"
    yield ""
    yield "| id | system | status | figures |"
    yield "|---:|---|---|---|"
    for row in rows:
        if row["scale"] == "expert":
            yield f"| {row['id']} | {row['name']} | {row['status']} | {row.get('figures', '')} |"
