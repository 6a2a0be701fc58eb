"""The frontier as a picture: mean quality against mean cost, PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute.errors import ConfigError, MissingExtraError
from polyroute.offline.compare import Compared, hull_band
from polyroute.offline.frontier import Curve, hull_of, scale_of
from polyroute.types import Array, Outcomes

ROUTER, SHADE = "#0b5cad", "#0b5cad"
MODEL = "#333333"
STYLES = {  # baseline -> colour, dashes
    "random mix": ("#8a8a8a", (0, (5, 2))),
    "shrunk kNN": ("#d1740f", (0, (3, 1, 1, 1))),
    "data-set oracle": ("#5a9e3c", (0, (6, 2, 1, 2))),
    "oracle": ("#9a4fb0", (0, (1, 1.5))),
}


class Drawn(NamedTuple):
    """Where the picture went."""

    png: Path
    svg: Path


def plot_frontier(
    path: Path | str, rows: Sequence[Compared], curves: Sequence[Curve], outcomes: Outcomes, counts: Array, *, title: str
) -> Drawn:
    """Draw the first curve as the router, with its operating points, hull and 95 % band, and the others around it.

    rows, curves: from `compare`, in the same order. outcomes, counts: what was compared on. The single models are
    points with their names. Writes PATH as PNG and as SVG, whatever suffix it has.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    path = Path(path)
    if path.suffix not in ("", ".png", ".svg"):
        raise ConfigError("plot", got=str(path), expected="a file name ending in .png or .svg")
    figure = Figure(figsize=(8.6, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    means = {name: outcomes.values[name].mean(axis=0) for name in ("quality", "cost")}  # [m]
    scale = scale_of(means["quality"], means["cost"])
    grid = np.geomspace(scale.low, max(scale.high, scale.low * 1.5), 160)
    low, high = hull_band(curves[0], outcomes, counts, grid)
    axes.fill_between(1e3 * grid, low, high, color=SHADE, alpha=0.14, linewidth=0, label="95 % interval of the hull")
    for row in rows[1:]:
        if row.name in STYLES:
            colour, dashes = STYLES[row.name]
            draw_hull(axes, row, grid, color=colour, linestyle=dashes, linewidth=1.5, zorder=2)
    draw_hull(axes, rows[0], grid, color=ROUTER, linewidth=2.2, zorder=4)
    axes.plot(1e3 * rows[0].cost, rows[0].quality, "o", color=ROUTER, markersize=3, alpha=0.55, zorder=4,
              label=f"{rows[0].name}: one trade-off each")  # fmt: skip
    axes.plot(1e3 * means["cost"], means["quality"], "D", color=MODEL, markersize=5, zorder=5, label="single models")
    frame(axes, figure, means, grid, rows, title)
    label_points(axes, 1e3 * means["cost"], means["quality"], [short(c.id) for c in outcomes.pool])
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    figure.savefig(png)
    figure.savefig(svg, metadata={"Date": None})
    return Drawn(png, svg)


def draw_hull(axes: Any, row: Compared, grid: Array, **style: Any) -> None:
    """One hull over the grid of costs, with the cheapest single model in it as everywhere."""
    hull = hull_of(row.cost, row.quality)
    if not len(hull.cost):
        return
    x = np.union1d(grid, hull.cost)
    x = x[(x >= hull.cost[0]) & (x <= grid[-1])]
    axes.plot(1e3 * x, np.interp(x, hull.cost, hull.quality), label=f"{row.name} (AIQ {row.summary.aiq:.3f})", **style)


def frame(axes: Any, figure: Any, means: dict[str, Array], grid: Array, rows: Sequence[Compared], title: str) -> None:
    """Axes, limits, grid lines and legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if grid[-1] / grid[0] > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    axes.set_xlabel("mean cost of a query (USD per 1,000 queries)")
    axes.set_xlabel("mean cost (USD per 1,000 queries)")
    axes.set_ylabel("mean quality (0 to 1)")
    axes.set_title(title, loc="left", fontsize=11)
    tops = [means["quality"].max(), *(row.quality.max() for row in rows)]
    bottom, top = means["quality"].min(), max(tops)
    axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom))
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def short(name: str) -> str:
    """A model's name without its owner."""
    return name.rsplit("/", 1)[-1]


def label_points(axes: Any, x: Array, y: Array, names: Sequence[str]) -> None:
    """Write each name beside its point, at the first of several places where it covers no other name or point."""
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    at = axes.transData.transform(np.column_stack([x, y]))
    inside = axes.get_window_extent(renderer)
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in at]
    places = [(dx, dy, ha) for r in (7, 16, 26, 36) for dx, dy, ha in
              ((r, 0, "left"), (-r, 0, "right"), (0, -r, "center"), (0, r, "center"),
               (r, -r, "left"), (-r, -r, "right"), (r, r, "left"), (-r, r, "right"))]  # fmt: skip
    for k in np.argsort(at[:, 0]):
        note = axes.annotate(names[k], (x[k], y[k]), textcoords="offset points", xytext=(0, 0), fontsize=7,
                             color=MODEL, va="center", zorder=6)  # fmt: skip
        best = None
        for dx, dy, ha in places:
            note.set_position((dx, dy))
            note.set_ha(ha)
            box = note.get_window_extent(renderer).padded(1.0).extents
            covered = sum(overlap(box, other) for other in taken) + outside(box, inside.extents)
            if best is None or covered < best[0]:
                best = covered, dx, dy, ha, box
            if covered == 0:
                break
        assert best is not None
        note.set_position(best[1:3])
        note.set_ha(best[3])
        if abs(best[1]) + abs(best[2]) > 12:
            axes.annotate("", (x[k], y[k]), xytext=best[1:3], textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": "#9a9a9a", "linewidth": 0.6}, zorder=3)  # fmt: skip
        taken.append(tuple(best[4]))


def overlap(a: Any, b: Any) -> float:
    """Shared area of two boxes (x0, y0, x1, y1)."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def outside(a: Any, frame: Any) -> float:
    """Area of box a that lies outside a frame."""
    return float((a[2] - a[0]) * (a[3] - a[1]) - overlap(a, frame))
