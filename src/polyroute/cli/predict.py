"""polyroute predict: the model a fitted router chooses for each query of a table, at many trade-offs or at one."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.artefact import Artefact, load
from polyroute.cli.progress import Steps
from polyroute.cli.tables import counted, vectors, writable
from polyroute.data.export import write_whole
from polyroute.data.prices import models_of
from polyroute.data.queries import load_queries
from polyroute.errors import MissingExtraError, OutcomesError, UnknownCandidateError, UnknownNameError
from polyroute.offline.frontier import TRADE_OFFS, choose
from polyroute.protocols import Router
from polyroute.routers.length import Length
from polyroute.routers.mix import Together
from polyroute.routers.price import Price
from polyroute.types import Array, Candidate, Estimate, Estimates, Query

EXAMPLE = """examples:
  polyroute predict r.npz queries.parquet -o choices.parquet
  polyroute predict r.npz queries.parquet --weights quality=1,cost=-150 -o choices.parquet
  polyroute predict r.npz queries.parquet --models models.json -o choices.parquet

The input needs query_id and query (or prompt); input_tokens is used where there is one. The output has a row per query
and trade-off: query_id, trade_off, model. At a trade-off t the model is the best in quality - t * cost / reference,
with the reference in the last line; `inf` is the model of lowest estimated cost. With --weights there is one row per
query, its trade_off the one the weights amount to. --models names the pool to choose from: an object with a list
`models` of name, price_in, price_out (USD per million tokens) and, if you have them, ability, context, tokens_per_s. It
may leave out models the router knows and list others, if the router serves them from their profiles, as with
polyroute fit --prior default."""
BATCH = 1024  # queries estimated at once


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="choose a model for each query of a table",
        description="Choose a model for each query with a fitted router.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("router", type=Path, metavar="R.npz", help="a file of polyroute fit")
    parser.add_argument("queries", type=Path, metavar="QUERIES.parquet")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.parquet", help="file to write")
    parser.add_argument("--weights", type=weights_of, metavar="quality=1,cost=-150",
                        help="utility per unit of each metric, instead of many trade-offs")  # fmt: skip
    parser.add_argument("--models", type=Path, metavar="MODELS.json",
                        help="choose among these instead of the models it was fitted on")  # fmt: skip
    parser.set_defaults(run=run)


def weights_of(text: str) -> dict[str, float]:
    """`quality=1,cost=-150` as a mapping."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise argparse.ArgumentTypeError(f"expected metric=number, for example quality=1,cost=-150, got {part!r}")
        if name in weights:
            raise argparse.ArgumentTypeError(f"expected each metric once, got {name} again: {part!r}")
        if weight < 0 and name == "quality":
            raise argparse.ArgumentTypeError(f"expected a weight of 0 or more, since quality is good, got {part!r}")
        if weight > 0 and name in ("cost", "latency"):
            raise argparse.ArgumentTypeError(f"expected a weight of 0 or less, since {name} is bad, got {part!r}")
        weights[name] = weight
    return weights


def run(args: argparse.Namespace) -> int:
    writable("--output", args.output, ".parquet", read=[args.queries])
    artefact = load(args.router)
    queries = counted(load_queries(args.queries), anew=artefact.info.get("tokens") == "text")
    queries = with_vectors(queries, artefact.features, args.queries)
    pool = artefact.pool if args.models is None else models_of(args.models)
    estimates = estimated(artefact.router, queries, pool)
    reference = reference_of(artefact, estimates)
    if args.weights is None:
        trade_offs: Sequence[float] = TRADE_OFFS
        choices = choose(estimates["quality"], estimates["cost"], trade_offs, reference)
    else:
        quality = args.weights.get("quality", 0.0)
        trade_offs = [-args.weights.get("cost", 0.0) * reference / quality if quality else math.inf]
        choices = weighed(estimates, args.weights).argmax(axis=1)[None]
    write(args.output, queries, trade_offs, choices, [candidate.id for candidate in pool])
    print(f"wrote {args.output}: {len(queries):,} queries at {len(trade_offs)} trade-offs")
    print(json.dumps({
        "command": "predict", "router": str(args.router), "fingerprint": artefact.fingerprint,
        "queries": len(queries), "trade_offs": len(trade_offs), "weights": args.weights,
        "reference_cost_usd": reference, "output": str(args.output),
    }))  # fmt: skip
    return 0


def with_vectors(queries: Sequence[Query], features: str, table: Path) -> list[Query]:
    """The queries with features. Raises: OutcomesError naming those that can have none."""
    rows = vectors(queries, features, table)
    missing = [query.id for query, row in zip(queries, rows, strict=True) if np.isnan(row).any()]
    if missing:
        raise OutcomesError(
            f"{table}: expected a text for every query, got none for {len(missing)} "
            f"({', '.join(map(repr, missing[:3]))}). Leave these rows out."
        )
    return [replace(query, embedding=row) for query, row in zip(queries, rows, strict=True)]


def estimated(router: Router, queries: Sequence[Query], pool: Sequence[Candidate]) -> dict[str, Array]:
    """Metric -> [n, m] expected; cost from list prices where the router learned none."""
    found: dict[str, list[Array]] = {}
    with Steps("estimating", len(queries)) as steps:
        for start in range(0, len(queries), BATCH):
            batch = queries[start : start + BATCH]
            members = router.routers if isinstance(router, Together) else [router]
            estimates: Estimates = {}
            for member in members:
                estimates = {**estimates, **with_newcomers(member, batch, pool)}
            if "cost" not in estimates:
                estimates = {**estimates, **Price(Length()).predict(batch, pool)}
            for metric, estimate in estimates.items():
                found.setdefault(metric, []).append(estimate.mean)
            steps.at(start + len(batch))
    return {metric: np.concatenate(parts) for metric, parts in found.items()}


def with_newcomers(router: Router, queries: Sequence[Query], pool: Sequence[Candidate]) -> Estimates:
    """A router's estimates; costs of models it never saw are those of their list prices.

    Raises: UnknownCandidateError where another metric than cost is asked of a model that nothing is known of.
    """
    try:
        return router.predict(queries, pool)
    except UnknownCandidateError as unknown:
        known = [j for j, candidate in enumerate(pool) if candidate.id not in unknown.missing]
        learned = router.predict(queries, [pool[j] for j in known])
        if set(learned) != {"cost"}:
            raise
        cost = Price(Length()).predict(queries, pool)["cost"].mean
        cost[:, known] = learned["cost"].mean
        return {"cost": Estimate(cost)}


def reference_of(artefact: Artefact, estimates: Mapping[str, Array]) -> float:
    """USD in which a trade-off is stated: as fitted, else the mean estimated cost of the dearest model here, else 1."""
    stated = artefact.info.get("reference_cost_usd")
    return float(stated or estimates["cost"].mean(axis=0).max() or 1.0)


def weighed(estimates: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """Utility [n, m]. Raises: UnknownNameError for a metric the router does not estimate."""
    for metric in weights:
        if metric not in estimates:
            raise UnknownNameError("metric", metric, estimates)
    total: Array = sum(weight * estimates[metric] for metric, weight in weights.items())
    return total


def write(path: Path, queries: Sequence[Query], trade_offs: Sequence[float], choices: Array, models: list[str]) -> None:
    """A row per query and trade-off, all trade-offs of a query together. choices: [p, n] column chosen."""
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("pyarrow", "data") from None
    p, n = choices.shape
    ids = pa.DictionaryArray.from_arrays(np.repeat(np.arange(n, dtype=np.int32), p), pa.array([q.id for q in queries]))
    chosen = pa.DictionaryArray.from_arrays(choices.T.reshape(-1).astype(np.int32), pa.array(models))
    table = pa.table({"query_id": ids, "trade_off": np.tile(np.asarray(trade_offs, dtype=float), n), "model": chosen})
    write_whole(table, path)
