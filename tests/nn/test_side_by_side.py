"""Layers trained side by side are the layers alone."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.moe import MoE, aux_losses, end_step
from polyroute.nn.normalise import CandidateMask
from polyroute.nn.side_by_side import side_by_side
from polyroute.nn.testbed import adamw, seeded
from polyroute.recipes.moe_baselines import softmax_top_k, switch
from polyroute.recipes.selective_sinkhorn import selective_sinkhorn

pytestmark = pytest.mark.torch


def steps_of(layer, x_BLD, many):
    """Train on fixed tokens; the outputs of the last step."""
    optimizer = adamw(layer, 1e-2)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(many):
        optimizer.zero_grad(set_to_none=False)  # a router without a gradient moves on by its momentum in both
        y = layer(x_BLD)
        (y.square().mean(2).mean(1).sum() + len(x_BLD) * sum(aux_losses(layer).values())).backward()
        optimizer.step()
        end_step(layer)
    return y.detach()


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: selective_sinkhorn(6, 5, 4, k=1, p=0.5, xi=0.2, seed=seed),
        lambda seed: switch(6, 6, 4, factor=None, balance=0.1, act="identity"),
        lambda seed: softmax_top_k(6, 5, 4, balance=0.0),
    ],
)
def test_each_layer_trains_as_it_does_alone(build):
    with seeded(3):
        alone = [build(seed) for seed in range(3)]
        x = torch.randn(3, 40, 6)
    together = steps_of(side_by_side(alone), x, 6)
    for layer, x_LD, y_LO in zip(alone, x, together, strict=True):
        torch.testing.assert_close(steps_of(layer, x_LD[None], 6)[0], y_LO, rtol=1e-3, atol=1e-4)


def test_what_cannot_stand_side_by_side_is_told():
    plain = MoE(4, 4, 4)
    for layers in ([], [MoE(4, 4, 4, shared=2)], [MoE(4, 4, 4, mods=(CandidateMask((0, 2), 5, 6),))]):
        with pytest.raises(ConfigError, match="layers"):
            side_by_side(layers)
    with pytest.raises(ShapeError):
        side_by_side([plain] * 3)(torch.zeros(2, 5, 4))
