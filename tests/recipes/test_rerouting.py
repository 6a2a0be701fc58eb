"""Rewiring at the published settings, and the pieces of its proof."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import numpy as np
import torch

from polyroute.nn.corpora import Batch, Regress
from polyroute.nn.moe import MoE
from polyroute.proofs.rerouting import HALF, halves, moved_batch, with_output_vector
from polyroute.recipes.rerouting import rerouting

pytestmark = pytest.mark.torch


def test_the_published_settings():
    router = rerouting(MoE(8, 4, 4), ratio=0.5)
    assert (router.lr, router.steps, router.every, router.ratio, router.prefer) == (0.05, 5, 128, 0.5, "high_C")


def test_a_router_that_a_shift_misleads_is_put_right():
    """Two experts, x and -x, told apart by the sign of a constant feature; moved, both kinds look like the first."""
    layer = MoE(2, 2, 2, act="identity")
    with torch.no_grad():
        layer.router.scorer.weight.copy_(torch.tensor([[0.0, 4.0], [0.0, -4.0]]))
        layer.pool.w1_EGD.copy_(torch.eye(2).expand(2, 2, 2))
        layer.pool.w2_EFO.copy_(torch.stack([torch.eye(2), -torch.eye(2)]))
    x = torch.tensor([[1.0, 0.5], [2.0, 0.5], [-1.0, 0.5]])[None]  # of the second kind, moved from -1 to 0.5
    batch = Batch(x, -x, torch.zeros(1, dtype=torch.int64))
    with rerouting(layer, lr=0.5, steps=10).rewired(batch) as rewiring, torch.no_grad():
        after = float((layer(x) + x).square().mean())
    assert rewiring.delta[""][1] > rewiring.delta[""][0]
    assert after < 0.1 * rewiring.loss[0]


def test_moved_inputs_keep_their_maps():
    world = Regress(3, 4, length=2 * HALF, seed=0)
    batch = moved_batch(world, np.random.default_rng(0), 5.0)
    plain = world.batch(np.random.default_rng(0), len(batch.x))
    shift = (batch.x - plain.x).reshape(-1, 4)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-4, atol=1e-5)
    assert float(shift[0].norm()) == pytest.approx(5, rel=1e-4)
    expected = world.map_COD[int(batch.domain_B[2])] @ batch.x[2, 7].numpy()
    np.testing.assert_allclose(batch.y[2, 7].numpy(), expected, rtol=1e-4, atol=1e-5)
    first, second = halves(batch, 2)
    assert torch.equal(torch.cat([first.x, second.x], 1), batch.x[2:3])


def test_the_output_vector_goes_to_the_mean_that_is_left():
    layer, x = MoE(4, 4, 4), torch.zeros(1, 5, 4)
    batch = Batch(x, torch.full((1, 5, 4), 0.2), torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(with_output_vector(layer, batch, 0.1, 200), torch.full((4,), 0.2), rtol=0, atol=5e-3)
