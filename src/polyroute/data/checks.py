"""What a table of outcomes can get wrong without any one cell being wrong: repeated queries, costs in another unit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from polyroute.data.columns import Columns
from polyroute.types import Array, Candidate

BY_PRICES = 30.0  # how far, by ratio, costs may lie from price times tokens; hidden tokens and discounts stay within
PER_MILLION = (1e-4, 1000.0)  # USD per million tokens that a whole table may cost in the middle
HIDDEN = 1000.0  # tokens an answer may have had where nobody counted
CHARACTERS_PER_TOKEN = 4.0
ENOUGH = 20  # costs below which nothing is concluded
UNITS = {2: "cents", 3: "thousandths of a USD, or for 1,000 queries", 6: "millionths of a USD, or a price per million"}


def same_text(texts: Sequence[str]) -> Array:
    """[n] int, equal for texts that differ in case, spaces, punctuation or form of characters only; -1: no text."""
    known: dict[str, int] = {}
    rows = (re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).lower()).strip() or text for text in texts)
    return np.array([known.setdefault(row, len(known)) if row else -1 for row in rows], dtype=np.int64)


def refuse_repeated_queries(columns: Columns, ids: Sequence[str], text: Array, splits: Array) -> None:
    """Raise where one text stands in several splits under different ids. text: [n] from `same_text`; splits: [n]."""
    order = np.argsort(text, kind="stable")
    starts = np.flatnonzero(np.diff(text[order], prepend=-2))
    repeated = [rows for rows in np.split(order, starts[1:]) if text[rows[0]] >= 0 and len(set(splits[rows])) > 1]
    if repeated:
        shown = "; ".join(", ".join(f"{ids[q]!r} in {splits[q]}" for q in rows[:4]) for rows in repeated[:5])
        raise columns.error(
            f"expected each text in one split, got {len(repeated)} in several ({shown})",
            "Leave the copies out of all splits but one, or accept the leak with allow_shared_groups "
            "(--allow-shared-groups).",
        )


def refuse_odd_costs(columns: Columns, cost: Array, read: Array, wrote: Array, pool: Sequence[Candidate]) -> None:
    """Raise where costs can hardly be USD. cost: [n, m]; read, wrote: [n, m] tokens, NaN where nobody counted.

    Costs are held against price times tokens where both are known, else against what a million tokens may cost.
    Costs of 0 are free models and say nothing; nor do fewer than ENOUGH costs.
    """
    paid = np.isfinite(cost) & (cost > 0)
    if paid.sum() < ENOUGH:
        return
    price_in, price_out = (np.array([getattr(c.profile, name) for c in pool]) for name in ("price_in", "price_out"))
    listed = (read * price_in + wrote * price_out) / 1e6
    known = paid & np.isfinite(listed) & (listed > 0)
    if known.sum() >= ENOUGH:
        ratio = float(np.median(cost[known] / listed[known]))
        if not 1 / BY_PRICES <= ratio <= BY_PRICES:
            raise columns.error(
                f"column 'cost_usd': expected USD, by prices and tokens about {np.median(listed[known]):.3g} an "
                f"answer, got {np.median(cost[known]):.3g}, {ratio:.3g} times that{guess(ratio)}",
                "Convert the column to USD, correct models.json, or take it as it is with any_cost (--any-cost).",
            )
        return
    floor = cost / (np.where(np.isfinite(read), read, 0.0) + np.where(np.isfinite(wrote), wrote, HIDDEN)) * 1e6
    ceiling = cost / (np.where(np.isfinite(read), read, 0.0) + np.where(np.isfinite(wrote), wrote, 1.0)) * 1e6
    if np.median(floor[paid]) > PER_MILLION[1] or np.median(ceiling[paid]) < PER_MILLION[0]:
        raise columns.error(
            f"column 'cost_usd': expected USD, got {np.median(cost[paid]):.3g} for an answer in the middle, which is "
            f"{np.median(floor[paid]):.3g} USD per million tokens",
            "Convert the column to USD, or take it as it is with any_cost (--any-cost).",
        )


def guess(ratio: float) -> str:
    """The unit that a ratio suggests, if it suggests one."""
    power = round(float(np.log10(ratio)))
    return f" (as if in {UNITS[power]})" if power in UNITS and 0.2 < ratio / 10**power < 5 else ""
