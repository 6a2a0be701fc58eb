"""What one run of `polyroute bench` covers: tables and routers by name, and who cannot take part, with why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polyroute.artefact import ROUTERS, resolve_router
from polyroute.cli.progress import say
from polyroute.data.synthetic import synthetic_outcomes
from polyroute.errors import PolyrouteError, UnknownNameError
from polyroute.offline.choose import QUALITY_ROUTERS
from polyroute.proofs.tables import data_folder


class Wanted(NamedTuple):
    """What one run covers."""

    tables: list[Path]
    features: list[str]
    routers: list[str]
    skipped: dict[str, str]  # router -> why it is not covered


def what_is_wanted(args: argparse.Namespace) -> Wanted:
    """Tables and routers by name. Raises: UnknownNameError."""
    tables = tables_wanted(args)
    names = sorted({*ROUTERS, *QUALITY_ROUTERS}) if args.routers is None else args.routers
    skipped = {name: why for name in names if (why := unfit(name))}
    for name, why in skipped.items():
        say(f"left out: {name}: {why}")
    routers = [name for name in names if name not in skipped]
    return Wanted(list(tables.values()), args.features, routers, skipped)


def tables_wanted(args: argparse.Namespace) -> dict[str, Path]:
    """Tables by name. Raises: UnknownNameError."""
    folder = data_folder() / "outcomes"
    known = {path.stem: path for path in sorted(folder.glob("*.parquet")) if not path.stem.endswith("_responses")}
    for name in args.tables or ():
        if name not in known:
            raise UnknownNameError("table", name, known)
    return {name: known[name] for name in args.tables or known}


def unfit(name: str) -> str:
    """Why a router cannot take part, found out on a toy table; empty where it can."""
    if name in QUALITY_ROUTERS:
        return ""
    table = synthetic_outcomes(60, 2, rng=np.random.default_rng(0)).outcomes
    try:
        router = resolve_router(name)()
    except TypeError:
        return "has no defaults: it is made of other routers or needs settings"
    except UnknownNameError:
        if name not in ROUTERS:  # a mistake of who asked for it
            raise
        return "cannot be imported"
    try:
        estimates = router.fit(table).predict(table.queries[:2], table.pool)
    except PolyrouteError as problem:
        return f"cannot learn from a table of outcomes ({problem})"
    return "" if "quality" in estimates else f"predicts {', '.join(estimates) or 'nothing'}, not quality"
