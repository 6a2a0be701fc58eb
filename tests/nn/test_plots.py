"""Pictures: every name and number is in the file, the same data gives the same file, bad input is named."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'polyroute[plot]'")

import torch

from polyroute.errors import ConfigError, MissingExtraError, ShapeError
from polyroute.nn.plots import plot_depth, plot_load, plot_loss, plot_tokens, short_layer
from polyroute.nn.testbed import History

pytestmark = pytest.mark.torch
SHARES = {"stack.blocks.0.ffn": [0.5, 0.25, 0.25, 0.0], "stack.blocks.1.ffn": [0.25, 0.25, 0.25, 0.25]}
ROUTES = {"a": torch.tensor([0, 1, 2]), "b": torch.tensor([2, 2, 0])}


def test_load_shows_the_ratio_to_the_mean(tmp_path):
    path = plot_load(tmp_path / "load.svg", SHARES)
    svg = path.read_text(encoding="utf-8")
    for text in ("layer 0", "layer 1", "2.00", "0.00", "1.00", "load over mean load"):
        assert f">{text}<" in svg
    assert plot_load(tmp_path / "again.svg", SHARES).read_bytes() == path.read_bytes()
    assert plot_load(tmp_path / "load.png", {"many": [1 / 64] * 64}).read_bytes()[1:4] == b"PNG"


def test_depth_and_tokens_show_the_text(tmp_path):
    svg = plot_depth(tmp_path / "depth.svg", ROUTES, 4, text="x\n$").read_text(encoding="utf-8")
    for text in ("a", "b", "x", "↵", "$", "expert"):
        assert f">{text}<" in svg
    svg = plot_tokens(tmp_path / "tokens.svg", "ab $c", [0, 1, 2, 3, 29], 30, columns=3).read_text(encoding="utf-8")
    for text in ("a", "b", "·", "c"):
        assert f">{text}<" in svg


def test_loss_and_its_auxiliaries(tmp_path):
    history = History(seed=0, lr=1e-3, num_parameters=1, loss=[3.0, 2.0, 1.5])
    assert "auxiliary" not in plot_loss(tmp_path / "loss.svg", history).read_text(encoding="utf-8")
    history.aux["stack.blocks.0.ffn/load_balance"] = [0.1, 0.2, 0.1]
    assert "load_balance, layer 0" in plot_loss(tmp_path / "loss.svg", history).read_text(encoding="utf-8")


def test_names_of_layers():
    assert [short_layer(n) for n in ("stack.blocks.12.ffn", "blocks.0.ffn", "moe", "")] == [
        "layer 12",
        "layer 0",
        "moe",
        "layer",
    ]


def test_bad_input_is_named(tmp_path, monkeypatch):
    for call in (
        lambda: plot_load(tmp_path / "x.png", {}),
        lambda: plot_load(tmp_path / "x.pdf", SHARES),
        lambda: plot_depth(tmp_path / "x.png", {}, 4),
        lambda: plot_loss(tmp_path / "x.png", History(seed=0, lr=0.1, num_parameters=1)),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ShapeError, match="text"):
        plot_depth(tmp_path / "x.png", ROUTES, 4, text="four")
    with pytest.raises(ShapeError, match="expert"):
        plot_tokens(tmp_path / "x.png", "abc", [0, 1], 4)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"polyroute\[plot\]"):
        plot_load(tmp_path / "x.png", SHARES)
    assert not list(tmp_path.iterdir())
