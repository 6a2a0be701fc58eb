"""System 99: the model it was made of until the pool opens, to the last expert afterwards."""

from __future__ import annotations

import copy
from itertools import repeat

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'polyroute[nn]'")

import torch

from polyroute.nn.chars import Chars
from polyroute.nn.corpora import batches
from polyroute.nn.hops import Hops, LookUps, hops_loss
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE, layers, routings
from polyroute.nn.testbed import seeded, train
from polyroute.nn.transformer import TinyLM
from polyroute.recipes.rexmoe import rexmoe

pytestmark = pytest.mark.torch


def local():
    with seeded(0):
        return TinyLM(Chars.vocab, 16, 4, 2, lambda layer: MoE(16, 8, 4, aux=[LBL(0.01)]), context=16)


def test_before_the_pool_opens_training_is_that_of_the_local_model():
    corpus, losses = Chars(16, size=2000), []
    for lm in (local(), rexmoe(local(), r=2, start=8, end=12)):
        losses.append(train(lm, batches(corpus, 4, seed=0), steps=16, seed=0).loss)
    one, two = losses
    assert one[:9] == pytest.approx(two[:9], abs=1e-4)
    assert one[11:] != pytest.approx(two[11:], abs=1e-4)
    for layer in layers(lm).values():
        assert bool(layer.router.mods[0].open_E(layer.step).all())


def test_parameters_of_experts_are_counted_once():
    before = local()
    after = rexmoe(copy.deepcopy(before), r=2)
    grown = sum(p.numel() for p in after.parameters()) - sum(p.numel() for p in before.parameters())
    assert grown == 4 * 4 * 16, "four routers, four more rows each"
    pools = {id(layer.pool) for layer in layers(after).values()}
    assert len(pools) == 2


def test_without_a_schedule_all_experts_are_open_at_once():
    lm = rexmoe(local(), r=4, start=None)
    lm(torch.arange(48).reshape(3, 16))
    assert all(routing.open_E is None and routing.num_experts == 16 for routing in routings(lm).values())
    assert any(bool(routing.count_E[4:].any()) for routing in list(routings(lm).values())[:1])


def test_layers_with_routers_of_their_own_learn_a_table_they_share():
    world = LookUps(24, 8, clusters=4, seed=0)
    with seeded(0):
        lm = Hops(world.key_ND, 2, lambda layer: MoE(8, 4, 2, aux=[LBL(0.01)]))
    rexmoe(lm, r=2, start=20, end=40)
    history = train(lm, repeat(world.everything()), steps=150, lr=3e-2, seed=0, loss=hops_loss)
    assert history.last(5) < 0.7 * history.loss[0]
    first, second = layers(lm).values()
    assert first.pool is second.pool
    assert first.router is not second.router
    shared = first.pool.w1_EGD.grad.abs().sum((1, 2))
    assert bool((shared > 0).all())
