"""The recipe's settings."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

from polyroute.nn.moe import MoE
from polyroute.nn.transformer import TinyLM
from polyroute.recipes.roma import roma

pytestmark = pytest.mark.torch


def test_the_last_five_layers_and_three_neighbours():
    model = TinyLM(5, 8, 7, 0, lambda layer: MoE(8, 4, 2), context=4)
    tuner = roma(model)
    assert [layer is block.ffn for layer, block in zip(tuner.layers, model.stack.blocks[2:], strict=True)] == [True] * 5
    assert (tuner.k, tuner.lam, tuner.token) == (3, 1.0, "last")
    assert roma(model, layers=["stack.blocks.1.ffn"], lam=0.0).layers == [model.stack.blocks[1].ffn]
