"""Routing as pictures: who carries the load, how routes run through the layers, which expert reads which character.

Each function draws one figure to a .png or .svg file and returns its path; the same data gives the same file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from polyroute.errors import ConfigError, MissingExtraError, ShapeError
from polyroute.nn.testbed import History

SVG_STYLE: Any = {"svg.hashsalt": "polyroute", "svg.fonttype": "none"}
LINE, FAINT = "#0b5cad", "#9db8d6"


def short_layer(name: str) -> str:
    """stack.blocks.3.ffn -> layer 3; other names as they are."""
    found = re.fullmatch(r"(?:.*\.)?blocks\.(\d+)\.ffn", name)
    return f"layer {found[1]}" if found else name or "layer"


def plot_load(path: Path | str, shares: Mapping[str, Sequence[float]], *, title: str = "Load of each expert") -> Path:
    """Heat map, layers x experts. shares: layer -> [E] share of the pairs, e.g. `History.shares()`.

    Colour is the load over the mean load: 1 is balance. Raises: MissingExtraError without matplotlib, ConfigError.
    """
    if not shares:
        raise ConfigError("shares", got="no layer", expected="at least one")
    num_experts = max(len(share) for share in shares.values())
    ratio = np.full((len(shares), num_experts), np.nan)
    for row, share in zip(ratio, shares.values(), strict=True):
        row[: len(share)] = np.asarray(share) * len(share) / max(float(np.sum(share)), 1e-12)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(ratio, cmap="cividis", vmin=0.0, vmax=max(2.0, float(np.nanmax(ratio))), aspect="auto")
        axes.set(xlabel="expert", title=title, yticks=range(len(shares)), yticklabels=map(short_layer, shares))
        if num_experts <= 16:
            for (layer, expert), value in np.ndenumerate(ratio):
                ink = "black" if value > 0.6 * image.norm.vmax else "white"
                if np.isfinite(value):
                    axes.text(expert, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
            axes.set_xticks(range(num_experts))
        figure.colorbar(image, ax=axes, label="load over mean load")

    return _save(path, draw, (7.5, 1.4 + 0.42 * len(shares)))


def plot_depth(
    path: Path | str,
    routes: Mapping[str, Tensor],
    num_experts: int,
    *,
    text: str = "",
    title: str = "Routes over depth",
) -> Path:
    """Every token's likeliest expert in every layer, as colours. routes: layer -> [T]; text: T characters below.

    Raises: MissingExtraError without matplotlib, ShapeError, ConfigError.
    """
    if not routes:
        raise ConfigError("routes", got="no layer", expected="at least one")
    table = np.stack([np.asarray(top_T) for top_T in routes.values()])
    if text and len(text) != table.shape[1]:
        raise ShapeError("text", got=(len(text),), expected=(table.shape[1],))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _experts(figure, axes, table, num_experts)
        axes.set(title=title, yticks=range(len(routes)), yticklabels=map(short_layer, routes))
        axes.set_xlabel("" if text else "token")
        if text:
            shown = [_visible(c) for c in text]
            axes.set_xticks(range(len(text)), shown, fontfamily="monospace", fontsize=8)
            axes.tick_params(axis="x", length=0)

    return _save(path, draw, (max(6.0, 1.8 + 0.12 * table.shape[1]), 1.6 + 0.4 * len(routes)))


def plot_tokens(
    path: Path | str, text: str, expert_T: Tensor | Sequence[int], num_experts: int, *, columns: int = 64,
    title: str = "The likeliest expert of each character",
) -> Path:  # fmt: skip
    """A text in lines of `columns` characters, each on the colour of its expert in one layer.

    Raises: MissingExtraError without matplotlib, ShapeError.
    """
    expert = np.asarray(expert_T)
    if expert.shape != (len(text),):
        raise ShapeError("expert", got=expert.shape, expected=(len(text),))
    num_lines = max(1, -(-len(text) // columns))
    table = np.full(num_lines * columns, np.nan)
    table[: len(text)] = expert

    def draw(figure: Any) -> None:
        axes, colours = figure.add_subplot(), _colours(num_experts)
        for i, (c, e) in enumerate(zip(text, expert, strict=True)):
            dark = np.dot(colours(int(e))[:3], (0.3, 0.59, 0.11)) < 0.55
            style = {"family": "monospace", "fontsize": 8, "color": "white" if dark else "black"}
            axes.text(i % columns, i // columns, _visible(c), ha="center", va="center", **style)
        _experts(figure, axes, table.reshape(num_lines, columns), num_experts)
        axes.set(title=title, xticks=[], yticks=[])

    return _save(path, draw, (2.0 + 0.125 * columns, 1.0 + 0.24 * num_lines))


def plot_loss(path: Path | str, history: History, *, title: str = "Loss of the task") -> Path:
    """Loss over steps, as it came and smoothed, and the auxiliary losses below it when there are any.

    Raises: MissingExtraError without matplotlib, ConfigError before the first step.
    """
    if not history.loss:
        raise ConfigError("history.loss", got="no step", expected="at least one")

    def draw(figure: Any) -> None:
        rows = figure.subplots(2 if history.aux else 1, 1, sharex=True, squeeze=False)[:, 0]
        step = np.arange(1, len(history.loss) + 1)
        rows[0].plot(step, history.loss, color=FAINT, linewidth=0.7, label="each step")
        rows[0].plot(step, _smooth(np.array(history.loss)), color=LINE, linewidth=1.8, label="smoothed")
        rows[0].set(title=title, ylabel="nats or squared error")
        rows[0].legend(frameon=False)
        for name, values in history.aux.items():
            layer, _, objective = name.rpartition("/")
            rows[1].plot(step[-len(values) :], _smooth(np.array(values)), label=f"{objective}, {short_layer(layer)}")
        if history.aux:
            rows[1].set_ylabel("auxiliary, weighted")
            rows[1].legend(frameon=False, fontsize=7)
        rows[-1].set_xlabel("step")

    return _save(path, draw, (7.5, 5.4 if history.aux else 3.6))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of up to one part in twenty of the values before each."""
    width = max(1, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    return (total[end] - total[start]) / (end - start)


def _experts(figure: Any, axes: Any, table: np.ndarray, num_experts: int) -> None:
    """Ids of experts as colours, with their key."""
    limits = {"vmin": -0.5, "vmax": num_experts - 0.5}
    image = axes.imshow(table, cmap=_colours(num_experts), aspect="auto", interpolation="none", **limits)
    figure.colorbar(image, ax=axes, label="expert", ticks=range(0, num_experts, max(1, num_experts // 16)))


def _visible(c: str) -> str:
    return {"\n": "\u21b5", " ": "\u00b7", "$": r"\$"}.get(c, c)


def _colours(num_experts: int) -> Any:
    """A colour for each expert, neighbours apart."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if num_experts <= 20:
        return ListedColormap([colormaps["tab20"](i) for i in range(num_experts)])
    return ListedColormap(colormaps["gist_ncar"]((np.arange(num_experts) * 0.618034) % 1.0))


def _save(path: Path | str, draw: Callable[[Any], None], size: tuple[float, float]) -> Path:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ConfigError("path", got=str(path), expected="a file name ending in .png or .svg")
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
