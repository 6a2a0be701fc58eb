"""The frontier as a picture: mean quality against mean cost, PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyroute.errors import ConfigError, MissingExtraError
from polyroute.offline.compare import Compared, hull_band
from polyroute.offline.frontier import Curve, Hull, hull_of, one_price, scale_of
from polyroute.types import Array, Outcomes

ROUTER, MODEL, OTHER = "#0b5cad", "#333333", "#c9c9c9"
STYLES = {  # baseline -> colour, dashes; those that are one point are rings around a model
    "plain kNN": ("#d1740f", (0, (3, 1, 1, 1))),
    "shrunk kNN": ("#d1740f", (0, (3, 1, 1, 1))),
    "random mix": ("#8a8a8a", (0, (5, 2))),
    "data-set oracle": ("#5a9e3c", (0, (6, 2, 1, 2))),
    "oracle": ("#9a4fb0", (0, (1, 1.5))),
}
RINGS = {"best single": "#b3261e", "cheapest": "#00796b"}
NAMES: Any = {"fontsize": 7, "color": MODEL, "va": "center",
              "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.6}}  # fmt: skip
PER_QUERIES = 1000  # costs are shown for this many queries
SVG_STYLE: Any = {"svg.hashsalt": "polyroute", "svg.fonttype": "none"}  # the same figure gives the same file


class Drawn(NamedTuple):
    """Where the picture went."""

    png: Path
    svg: Path


def plot_frontier(
    path: Path | str, rows: Sequence[Compared], curves: Sequence[Curve], outcomes: Outcomes, counts: Array, title: str
) -> Drawn:
    """Draw the first curve as the router, with its operating points, hull and 95 % band, and the others around it.

    rows, curves: from `compare`, in the same order. outcomes, counts: what was compared on. The single models are
    points with their names. Writes PATH as PNG and as SVG, whatever of the two suffixes it has.
    Raises: MissingExtraError without matplotlib; ConfigError for another suffix.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    png, svg = targets(path)
    figure = Figure(figsize=(9.2, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cost = PER_QUERIES * outcomes.values["cost"].mean(axis=0)  # [m]
    quality = outcomes.values["quality"].mean(axis=0)
    scale = scale_of(quality, cost)
    grid = costs_between(scale.low, scale.high)
    low, high = hull_band(curves[0], outcomes, counts, grid / PER_QUERIES)
    axes.fill_between(grid, low, high, color=ROUTER, alpha=0.13, linewidth=0, label=f"95 % interval of {rows[0].name}")
    named = {row.name: f"{row.name} ({'quality' if one_price(scale) else 'AIQ'} {row.summary.aiq:.3f})" for row in rows}
    lines = [draw_hull(axes, hull_at(rows[0]), grid, label=named[rows[0].name], color=ROUTER, linewidth=2.2, zorder=4)]
    axes.plot(PER_QUERIES * rows[0].cost, rows[0].quality, "o", color=ROUTER, markersize=3, alpha=0.55, zorder=4,
              label=f"{rows[0].name}, one trade-off each")  # fmt: skip
    for row in rows[1:]:
        if row.name in STYLES:
            colour, dashes = STYLES[row.name]
            style: dict[str, Any] = {"color": colour, "linestyle": dashes, "label": named[row.name], "zorder": 3}
            lines.append(draw_hull(axes, hull_at(row), grid, **style))
        elif row.name in RINGS:
            axes.plot(PER_QUERIES * row.cost, row.quality, "o", color=RINGS[row.name], markersize=11, zorder=4,
                      fillstyle="none", label=named[row.name])  # fmt: skip
    axes.plot(cost, quality, "D", color=MODEL, markersize=5, zorder=5, label="single models")
    frame(axes, grid, [quality, low, high, *(row.quality for row in rows)], title)
    if one_price(scale):
        axes.set_xlabel(f"{axes.get_xlabel()}; all models have one price")
    label_points(axes, cost, quality, [short(candidate.id) for candidate in outcomes.pool], lines)
    with matplotlib.rc_context(SVG_STYLE):
        figure.savefig(png)
        figure.savefig(svg, metadata={"Date": None})
    return Drawn(png, svg)


def plot_frontiers(path: Path | str, rows: Sequence[Mapping[str, Any]], models: Mapping[str, Any], title: str) -> Path:
    """Hulls of many routers as one SVG: those of STYLES and `marked` ones in colour, the others thin and grey.

    rows: name, aiq, cost [p] (USD), quality [p] each; a row with `marked` is drawn as the router. models: ids in
    `models`, their means in `cost` and `quality`. Raises: MissingExtraError without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    figure = Figure(figsize=(9.2, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cost, quality = PER_QUERIES * np.array(models["cost"]), np.array(models["quality"])
    scale = scale_of(quality, cost)
    grid, lines, heights = costs_between(scale.low, scale.high), [], [quality]
    others = "other routers"
    for row in sorted(rows, key=lambda row: bool(row.get("marked"))):
        style: dict[str, Any] = {"color": OTHER, "linewidth": 0.8, "label": others}
        if row.get("marked") or row["name"] in STYLES:
            colour, dashes = STYLES.get(row["name"], (ROUTER, "-"))
            label = f"{row['name']} ({'quality' if one_price(scale) else 'AIQ'} {row['aiq']:.3f})"
            style = {"color": colour, "linestyle": dashes, "label": label, "zorder": 3}
            style["linewidth"] = 2.2 if row.get("marked") else 1.4
        else:
            others = "_nolegend_"  # one entry stands for all
        hull = hull_of(PER_QUERIES * np.array(row["cost"]), np.array(row["quality"]))
        lines.append(draw_hull(axes, hull, grid, **style))
        heights.append(lines[-1][:, 1])
    axes.plot(cost, quality, "D", color=MODEL, markersize=5, zorder=5, label="single models")
    frame(axes, grid, [height for height in heights if len(height)], title)
    label_points(axes, cost, quality, [short(name) for name in models["models"]], lines)
    path = Path(path)
    with matplotlib.rc_context(SVG_STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def costs_between(low: float, high: float) -> Array:
    """A grid of costs [g], spaced as the axis will be: by ratio, or evenly where the cheapest model is free."""
    if low <= 0:
        return np.linspace(low, high if high > low else low + 1.0, 160)
    return np.geomspace(low, max(high, 1.2 * low), 160)


def targets(path: Path | str) -> Drawn:
    """PATH as PNG and as SVG."""
    path = Path(path)
    if path.suffix not in ("", ".png", ".svg"):
        raise ConfigError("--plot", got=str(path), expected="a file name ending in .png or .svg")
    return Drawn(path.with_suffix(".png"), path.with_suffix(".svg"))


def draw_hull(axes: Any, hull: Hull, grid: Array, **style: Any) -> Array:
    """One hull, as far as its points and the grid of costs reach. Returns the line [v, 2]."""
    x = np.union1d(grid, hull.cost)
    x = x[(x >= hull.cost[0]) & (x <= grid[-1])]
    y = np.interp(x, hull.cost, hull.quality)
    axes.plot(x, y, **style)
    return np.column_stack([x, y])


def hull_at(row: Compared) -> Hull:
    """The hull with costs as they are shown."""
    return hull_of(PER_QUERIES * row.cost, row.quality)


def frame(axes: Any, grid: Array, heights: Sequence[Array], title: str) -> None:
    """Axes, limits, grid lines and legend. A wide range of costs gets a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    wide = bool(grid[0] > 0) and grid[-1] / grid[0] > 8
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    axes.set_xlabel(f"mean cost, USD per {PER_QUERIES:,} queries" + (" (logarithmic)" if wide else ""))
    axes.set_ylabel("mean quality, 0 to 1")
    axes.set_title(title, loc="left", fontsize=11)
    bottom, top = min(float(h.min()) for h in heights), max(float(h.max()) for h in heights)
    room = 0.05 * max(top - bottom, 0.02)
    axes.set_ylim(bottom - room, top + room)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)


def short(name: str) -> str:
    """A model's name without its owner."""
    return name.rsplit("/", 1)[-1]


Place = tuple[int, int]
PLACES: list[Place] = [  # where a name may begin, end or be centred: points right of and above its model, nearest first
    (dx * r, dy * r)
    for r in (8, 14, 20, 28, 38, 50)
    for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def label_points(axes: Any, x: Array, y: Array, names: Sequence[str], lines: Sequence[Array]) -> None:
    """Write each name near its point where it covers no other name or point and, if it can be, no line.

    lines: [v, 2] each, in data coordinates.
    """
    axes.figure.canvas.draw()
    renderer = axes.figure.canvas.get_renderer()
    at = axes.transData.transform(np.column_stack([x, y]))  # [m, 2] pixels
    on_lines = axes.transData.transform(np.concatenate(lines))
    inside = axes.get_window_extent(renderer).extents
    taken: list[Box] = [(px - 8, py - 8, px + 8, py + 8) for px, py in at]
    for k in np.argsort(at[:, 0]):
        note = axes.annotate(names[k], (x[k], y[k]), xytext=(0, 0), textcoords="offset points", zorder=6, **NAMES)
        extent = note.get_window_extent(renderer)
        boxes = [box_at(at[k], place, (extent.width, extent.height), axes.figure.dpi / 72) for place in PLACES]
        best = int(np.argmin([trouble(box, taken, on_lines, inside) + np.hypot(*place)
                              for box, place in zip(boxes, PLACES, strict=True)]))  # fmt: skip
        taken.append(boxes[best])
        note.set_position(PLACES[best])
        note.set_ha(("center", "left", "right")[np.sign(PLACES[best][0])])
        if np.hypot(*PLACES[best]) > 14:
            axes.annotate("", (x[k], y[k]), xytext=PLACES[best], textcoords="offset points", zorder=3,
                          arrowprops={"arrowstyle": "-", "color": "#9a9a9a", "linewidth": 0.6})  # fmt: skip


def box_at(point: Array, place: Place, size: tuple[float, float], pixels: float) -> Box:
    """Where a name of a size in pixels would stand. pixels: of a point."""
    width, height = size
    left = float(point[0]) + place[0] * pixels - {1: 0.0, 0: width / 2, -1: width}[int(np.sign(place[0]))]
    low = float(point[1]) + place[1] * pixels - height / 2
    return (left - 1, low - 1, left + width + 1, low + height + 1)


def trouble(box: Box, taken: Sequence[Box], on_lines: Array, inside: Box) -> float:
    """What is wrong with a place, in square pixels: covered names and points weigh most, then lines."""
    out = (box[2] - box[0]) * (box[3] - box[1]) - overlap(box, inside)
    hidden = ((on_lines > box[:2]) & (on_lines < box[2:])).all(axis=1).sum()
    return float(10 * sum(overlap(box, other) for other in taken) + 10 * out + 40 * hidden)


def overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes."""
    return float(max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1])))
