"""The router `auto` uses before any outcome is known, and how it was made: `python -m polyroute.recipes.cold_start`.

It learns from the train splits of two permissively licensed tables (LLMRouter, MIT; RouteLLM, Apache-2.0) and from
what the embedded local models answered to self-generated probes and to GSM8K questions of the train split
(`data/local_outcomes.json`). The parts are `routers/default.py` and, for candidates whose profile states abilities,
`routers/irt.py` as its prior; nothing here decides anything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from polyroute.artefact import save
from polyroute.data.outcomes import load_outcomes
from polyroute.data.probes import probes
from polyroute.errors import OutcomesError
from polyroute.offline.calibration import brier, expected_calibration_error
from polyroute.offline.split import part
from polyroute.protocols import Router
from polyroute.routers.default import Default
from polyroute.routers.irt import IRT
from polyroute.signals import featuriser
from polyroute.types import Array, Candidate, Outcomes, Query

TABLES = ("llmrouter9", "routellm")
SKILL = {
    "gsm8k": "math", "mgsm": "math", "math": "math", "mbpp": "code", "human_eval": "code", "trivia_qa": "knowledge",
    "natural_qa": "knowledge", "mmlu": "knowledge", "gpqa": "science", "arc_challenge": "commonsense",
    "commonsense_qa": "commonsense", "openbook_qa": "commonsense", "logicgrid": "logic", "commongen": "writing",
    "mt_bench": "writing",
}  # fmt: skip
LOCAL_WEIGHT = 8.0  # a local outcome counts this often: they are few, and all there is on the easy end


def local_outcomes() -> dict[str, Any]:
    """What the local models answered: model -> {question id: score}; the questions are made again from their seed."""
    text = files("polyroute.data").joinpath("local_outcomes.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def table(path: Path, split: str) -> Outcomes:
    """One table's rows of a split, labelled with data sets and skills."""
    outcomes = part(load_outcomes(path), split)
    dataset = np.asarray(outcomes.labels["dataset"]).astype(str)
    return replace(outcomes, labels={"dataset": dataset, "skill": np.array([SKILL[name] for name in dataset])})


def probe_table(recorded: dict[str, Any], gsm8k: dict[str, Query]) -> Outcomes:
    """The local models' outcomes: probes drawn again from their seed, and GSM8K questions by id."""
    drawn = [
        p for draw in recorded["draws"]
        for p in probes(draw["per_level"], np.random.default_rng(draw["seed"]), draw["families"])
    ]  # fmt: skip
    asked = {p.id: (Query(p.id, p.prompt), p.skill) for p in drawn}
    asked |= {q.id: (q, "math") for q in gsm8k.values()}
    pool = [Candidate(name) for name in recorded["scores"]]
    ids = [i for i in asked if any(i in scores for scores in recorded["scores"].values())]
    quality = np.array([[recorded["scores"][c.id].get(i, np.nan) for c in pool] for i in ids])
    skill = np.array([asked[i][1] for i in ids])
    dataset = np.array(["gsm8k" if i in gsm8k else f"{asked[i][1]} probes" for i in ids])
    labels = {"dataset": dataset, "skill": skill}
    return Outcomes([asked[i][0] for i in ids], pool, {"quality": quality}, np.isfinite(quality), labels)


def stacked(tables: Sequence[Outcomes]) -> Outcomes:
    """Tables of different pools as one masked table."""
    pool = [candidate for t in tables for candidate in t.pool]
    if len({c.id for c in pool}) != len(pool):
        raise OutcomesError("expected tables with different candidates, got one candidate in two of them.")
    queries = [query for t in tables for query in t.queries]
    quality = np.full((len(queries), len(pool)), np.nan)
    i = j = 0
    for t in tables:
        quality[i : i + len(t), j : j + len(t.pool)] = np.where(t.observed, t.values["quality"], np.nan)
        i, j = i + len(t), j + len(t.pool)
    labels = {name: np.concatenate([t.labels[name] for t in tables]) for name in ("dataset", "skill")}
    return Outcomes(queries, pool, {"quality": quality}, np.isfinite(quality), labels)


def embedded(outcomes: Outcomes, features: str) -> Outcomes:
    """The same table with embeddings of one featuriser."""
    x = featuriser(features)([query.text for query in outcomes.queries])
    return replace(outcomes, queries=[replace(q, embedding=x[i]) for i, q in enumerate(outcomes.queries)])


def cold_start(data: Path, features: str = "static-1", l2: float | None = None) -> tuple[Default, dict[str, Any]]:
    """Fit the shipped router and say how well it predicts the valid splits, which it has not seen."""
    recorded = local_outcomes()
    routellm = load_outcomes(data / "outcomes" / "routellm.parquet")
    train_ids = {q.id: q for q in part(routellm, "train").queries}
    local = probe_table(recorded, {i: train_ids[i] for i in recorded["gsm8k"] if i in train_ids})
    paths = [data / "outcomes" / f"{name}.parquet" for name in TABLES]
    train = embedded(stacked([*(table(p, "train") for p in paths), local]), features)
    valid = embedded(stacked([table(p, "valid") for p in paths]), features)
    tried = {}
    for penalty in (3.0, 10.0, 30.0) if l2 is None else (l2,):
        prior = fit_prior(train, len(local), penalty)
        tried[penalty] = (brier(predicted(prior, valid), truth(valid)), prior)
        print(f"l2 {penalty:>5}: Brier score on the valid splits {tried[penalty][0]:.4f}", file=sys.stderr)
    best = min(tried, key=lambda penalty: tried[penalty][0])
    router = fit_default(train, len(local), tried[best][1])
    folds = held_out(train, len(local), best)
    said = predicted(router, valid)
    info = {
        "recipe": "polyroute.recipes.cold_start", "tables": list(TABLES), "split": "train", "l2": best,
        "rows": len(train), "valid_brier": round(float(brier(said, truth(valid))), 4),
        "valid_ece": round(float(expected_calibration_error(said, truth(valid))), 4),
        "valid_brier_prior": round(float(tried[best][0]), 4), **folds,
    }  # fmt: skip
    return router, info


def fit_prior(train: Outcomes, num_local: int, l2: float) -> IRT:
    """Abilities and difficulty. num_local: the last rows, which count LOCAL_WEIGHT times."""
    weight = np.ones(len(train))
    weight[len(train) - num_local :] = LOCAL_WEIGHT
    return IRT(l2=l2).fit(train, weight)


def fit_default(train: Outcomes, num_local: int, prior: IRT) -> Default:
    """The default router, local outcomes repeated LOCAL_WEIGHT times.

    It reads embeddings alone: the table of words, which it would learn too, is 8 MB and half of a decision's time, for
    a Brier score 0.002 lower on the valid splits.
    """
    rest = len(train) - num_local
    rows = np.concatenate([np.arange(rest), np.repeat(np.arange(rest, len(train)), round(LOCAL_WEIGHT))])
    many = train.take(rows)
    group = np.array([query.id for query in many.queries])  # copies stay in one fold
    labels = {"dataset": many.labels["dataset"], "group": group}
    return Default(prior=prior).fit(replace(many, queries=wordless(many.queries), labels=labels))


def held_out(train: Outcomes, num_local: int, l2: float, num_folds: int = 5) -> dict[str, float]:
    """Brier scores on local outcomes by both routers, each question predicted without its own answers."""
    first = len(train) - num_local
    fold = np.random.default_rng(0).permutation(num_local) % num_folds
    said = np.full((2, num_local, len(train.pool)), np.nan)
    for k in range(num_folds):
        rows = np.concatenate([np.arange(first), first + np.flatnonzero(fold != k)])
        known, unknown = train.take(rows), train.take(first + np.flatnonzero(fold == k))
        prior = fit_prior(known, int((fold != k).sum()), l2)
        both = prior, fit_default(known, int((fold != k).sum()), prior)
        said[:, fold == k] = [predicted(router, unknown) for router in both]
        print(f"local questions: fold {k + 1} of {num_folds}", file=sys.stderr)
    right = truth(train.take(np.arange(first, len(train))))
    found = [round(float(brier(one, right)), 4) for one in said]
    return {"local_brier": found[1], "local_brier_prior": found[0]}


def wordless(queries: Sequence[Query]) -> list[Query]:
    return [replace(query, text="") for query in queries]


def predicted(router: Router, outcomes: Outcomes) -> Array:
    """Expected quality [n, m]."""
    return router.predict(outcomes.queries, outcomes.pool)["quality"].mean


def truth(outcomes: Outcomes) -> Array:
    return np.where(outcomes.observed, outcomes.values["quality"], np.nan)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--data", type=Path, default=Path("../shared/data"))
    p.add_argument("--features", default="static-1")
    p.add_argument("-o", "--output", type=Path, default=Path("src/polyroute/data/cold_start.npz"))
    args = p.parse_args()
    router, info = cold_start(args.data, args.features)
    save(router, args.output, features=args.features, pool=[Candidate(c) for c in router.column_ or ()], info=info)
    prior = router.prior
    assert isinstance(prior, IRT)
    for name, row in zip(prior.column_, prior.ability_, strict=True):
        print(f"{name:<40}", "  ".join(f"{s} {v:+.2f}" for s, v in zip(prior.skills_, row, strict=True)))
    print(json.dumps(info | {"bytes": args.output.stat().st_size}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
