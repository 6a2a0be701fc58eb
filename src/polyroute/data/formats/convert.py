"""Files of other benchmarks to the Parquet tables that fit, eval, predict and bench read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from polyroute.data.formats.files import READABLE, columns_of, files_of
from polyroute.data.formats.gqr import gqr
from polyroute.data.formats.long import Long, columns_of_answers, write_columns
from polyroute.data.formats.published import COST, embedllm, llmrouterbench, routellm, routerarena, routerbench
from polyroute.data.outcomes import load_outcomes
from polyroute.data.prices import read_models
from polyroute.errors import OutcomesError, UnknownNameError
from polyroute.types import Profile

OUTCOMES: dict[str, Callable[[Path], Long]] = {
    "routerbench": routerbench,
    "routellm": routellm,
    "llmrouterbench": llmrouterbench,
    "routerarena": routerarena,
    "embedllm": embedllm,
}
FORMATS = (*OUTCOMES, "gqr")


class Converted(NamedTuple):
    """What became of the files."""

    format: str
    queries: int
    models: int  # 0: labelled texts
    notes: list[str]


def convert(
    source: Path, output: Path, format: str | None = None, *, prices: Path | None = None, new_splits: bool = False
) -> Converted:
    """Write `output`, a Parquet table, from a file or folder. format: a name of FORMATS; None: told by its fields.

    prices: a models.json for sources without costs; else their costs are 0 and only quality counts. new_splits: draw
    splits anew where the source has its own; where it has none they are always drawn. The table is read back with every
    check of `load_outcomes`. Raises: OutcomesError; UnknownNameError.
    """
    format = told(source) if format is None else format
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    if format == "gqr":
        texts = gqr(source)
        write_columns(texts, output)
        return Converted(format, len(texts["query_id"]), 0, [f"labels: {', '.join(sorted(set(texts['domain'])))}"])
    long = OUTCOMES[format](source)
    listed = {name: profile for name, _, profile in read_models(prices)} if prices is not None else {}
    write_columns(columns_of_answers(long, listed, new_splits=new_splits), output)
    try:
        outcomes = load_outcomes(output)
    except OutcomesError:
        output.unlink()
        raise
    whole = int(outcomes.observed.all(axis=1).sum())
    notes = [f"{count:,} {what}" for what, count in sorted(long.counts.items())]
    if whole < len(outcomes):
        notes.append(f"{len(outcomes) - whole:,} queries lack a model's answer")
    return Converted(format, len(outcomes), len(outcomes.pool), notes + costs(long, listed))


def costs(long: Long, prices: Mapping[str, Profile]) -> list[str]:
    """What is to be said of costs the source does not state."""
    models = sorted({answer.model for answer in long.answers.values() if answer.cost_usd is None})
    without = [model for model in models if model not in prices]
    notes = []
    if len(without) < len(models):
        notes.append(f"costs estimated from list prices for {len(models) - len(without)} models")
    if without:
        shown = ", ".join(without[:4]) + (", ..." if len(without) > 4 else "")
        notes.append(f"no costs and no prices for {len(without)} models ({shown}): their cost is 0; see --prices")
    return notes


def told(source: Path) -> str:
    """The format of a file or folder, by its fields. Raises: OutcomesError listing the formats."""
    path = files_of(source, *READABLE)[0]
    names = set(columns_of(path))
    found = {
        "routerbench": any(name.endswith(COST) for name in names),
        "routerarena": {"global_index", "llm_selected"} <= names,
        "llmrouterbench": "records" in names,
        "embedllm": {"prompt_id", "model_name", "label"} <= names,
        "gqr": "text" in names and bool({"label", "domain"} & names),
        "routellm": path.suffix != ".json" and "prompt" in names and "model" not in names,
    }
    for name, fits in found.items():
        if fits:
            return name
    raise OutcomesError(
        f"{path}: expected the fields of one of {', '.join(FORMATS)}, got {', '.join(sorted(names)[:12]) or 'none'}. "
        f"Name the format with --format."
    )
